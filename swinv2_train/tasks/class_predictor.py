"""Prediction of the classes of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_input import prepare, read_image
from swinv2_train.data.pixels import largest_value
from swinv2_train.tasks.prediction import PICTURE_SIDE, Prediction, Predictor, Unreadable
from swinv2_train.tracking.figures import to_pil

_READERS = 4
_BATCH = 16


class ClassPredictor(Predictor):
    """The most likely classes of every image, for a model that returns logits (B, classes)."""

    def predict(self, paths: Sequence[Path]) -> Iterator[Prediction | Unreadable]:
        size, left = self.options.batch or _BATCH, self.options.pictures
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(paths), size):
                group = paths[start : start + size]
                read = list(pool.map(self._read, group, [number < left for number in range(len(group))]))
                left -= sum(not isinstance(one, str) and one[1] is not None for one in read)
                yield from self._predicted(group, read)
                self.progress("images", start + len(group), len(paths))

    def _predicted(
        self, paths: Sequence[Path], read: Sequence[tuple[Tensor, Image.Image | None] | str]
    ) -> Iterator[Prediction | Unreadable]:
        shares = iter(self._shares([one[0] for one in read if not isinstance(one, str)]))
        for path, one in zip(paths, read, strict=True):
            if isinstance(one, str):
                yield Unreadable(path, one)
                continue
            values, numbers = next(shares).topk(min(self.options.top, len(self.model.names)))
            pairs = zip(numbers.tolist(), values.tolist(), strict=True)
            yield Prediction(path, [(number, self.model.names[number], value) for number, value in pairs], one[1])

    def _shares(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the probability of every class, (classes,) on the host for each image."""
        if not images:
            return []
        logits = self.model.module(torch.stack(list(images)).to(self.model.device)).float().cpu()
        if not logits.isfinite().all():
            raise FloatingPointError("the outputs of the model are not finite")
        return list(logits.sigmoid() if self.model.config.task.multi_label else logits.softmax(dim=1))

    def _read(self, path: Path, wanted: bool) -> tuple[Tensor, Image.Image | None] | str:
        """Return the input of the model and, if requested, a picture; or the reason why the file cannot be used."""
        config, mean, std = self.model.config, self.model.mean, self.model.std
        try:
            image = read_image(path, config.model.in_channels, DecodeOptions.of(config.data, mean))
        except BrokenSample as error:
            return str(error)
        picture = None
        if wanted:
            picture = to_pil(image.numpy() / largest_value(image), stretch=image.dtype == torch.uint16)
            picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        return prepare(image, config, mean, std), picture
