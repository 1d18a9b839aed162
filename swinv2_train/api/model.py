"""Weights from any source as a model that takes images, or of clips videos, in any form."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from swinv2_train.analysis.features import POOLED, features_of, stage_name
from swinv2_train.api.checks import at_least, check_device
from swinv2_train.api.clips import clip_of
from swinv2_train.config.checks import resolution
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import NUM_STAGES
from swinv2_train.config.paths import user_path
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import LOGITS, PIXEL_LOGITS
from swinv2_train.data.augment import normalise_clips
from swinv2_train.data.decode import DecodeOptions, adapted, decode
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.image_input import prepare, read_image
from swinv2_train.data.pixels import from_values
from swinv2_train.data.sample import Sample
from swinv2_train.interop.load import LoadedModel, load_model
from swinv2_train.launch.local_ranks import choose_ranks
from swinv2_train.models.backbone import SwinTransformerV2, backbone_of

ImageLike: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor | Sample
"""A file, an encoded image, a PIL image, an array (H, W) or (H, W, C), a tensor (C, H, W), or a sample of
`open_shards`. Arrays and tensors are uint8 or uint16; with `data.scale`, of any real type.

For a model of clips a video: a file, its bytes, an array (N, H, W, 3), a tensor (3, N, H, W), or a sample."""
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


class Model:
    """A model with its weights, in evaluation mode.

    Attributes:
        module: model of its task with its head, a torch module on `device`; fine-tune it or take it apart.
        backbone: the Swin Transformer V2 inside it: normalized images (B, C, H, W) of any size to the maps of the four
            stages (B, H_i, W_i, C_i), whose C_i are `backbone.dims`; clips (B, C, T, H, W) to (B, T_i, H_i, W_i, C_i).
        config: sections `model`, `data`, and `task` of the weights.
        mean, std: per-channel statistics that normalize images in [0, 1].
        class_names: names of the classes; None if the weights have none.
        source: checkpoint or file that was read.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device) -> None:
        self.module: nn.Module = loaded.model.to(device)
        self.backbone: SwinTransformerV2 = backbone_of(self.module)
        self.config: Config = loaded.config
        self.mean, self.std = loaded.mean, loaded.std
        self.class_names = loaded.class_names
        self.source: Path = loaded.source.path
        self.device = device

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of preprocessed images."""
        return resolution(self.config)

    def preprocess(self, images: ImageLike | Iterable[ImageLike]) -> Tensor:
        """Return the input of the model, (B, C, H, W) float32 on its device: decoded, resized, cropped, and normalized.

        Of videos, it is the clip in the middle of each, (B, C, T, H, W). If an array or a tensor has exactly
        `data.frames` frames, they are the clip.

        The result is that of an evaluation; the images of a segmenter are resized to `resolution`, whatever their
        aspect. A single image becomes a batch of one.

        Raises:
            DataError: naming the first image that cannot be used.
        """
        batch = [self._prepared(number, image) for number, image in enumerate(_listed(images, self._axes))]
        if not batch:
            raise DataError("there are no images")
        return torch.stack(batch).to(self.device)

    def features(self, images: ImageLike | Iterable[ImageLike], *, batch: int = 32) -> Tensor:
        """Return the pooled features, (N, D) float32 on the CPU: the mean over the tokens of the last stage.

        Args:
            images: a tensor (B, C, H, W), of clips (B, C, T, H, W), of floats counts as preprocessed; `Shards` are read
                in groups.
            batch: images or clips in one forward pass.

        Raises:
            DataError: naming the first image that cannot be used.
        """
        return torch.cat([features_of(self.module, each)[POOLED] for each in self._batches(images, batch)])

    def maps(
        self, images: ImageLike | Iterable[ImageLike], stages: Sequence[int] = (1, 2, 3, 4), *, batch: int = 32
    ) -> list[Tensor]:
        """Return the maps of some stages, (N, C_i, H_i, W_i), of clips (N, C_i, T_i, H_i, W_i), float32 on the CPU
        each; arguments as for `features`.

        Raises:
            ConfigError: for a stage that does not exist.
            DataError: as for `features`.
        """
        stages = list(stages) if isinstance(stages, Iterable) else [stages]
        wrong = [stage for stage in stages if stage not in range(1, NUM_STAGES + 1)]
        if wrong or not stages:
            raise ConfigError(
                "stages", wrong[0] if wrong else "()", f"must be numbers of stages, from 1 to {NUM_STAGES}"
            )
        found = [features_of(self.module, each, stages) for each in self._batches(images, batch)]
        return [torch.cat([one[stage_name(stage)] for one in found]) for stage in stages]

    @torch.no_grad()
    def probabilities(self, images: ImageLike | Iterable[ImageLike], *, batch: int = 32) -> Tensor:
        """Return the probability of every class, float32 on the CPU; arguments as for `features`.

        Returns:
            (N, classes); of a segmenter (N, classes, H, W), one for every pixel of the preprocessed images.

        Raises:
            ConfigError: if the model has no classes.
        """
        task = self.config.task
        if task.OUTPUT not in (LOGITS, PIXEL_LOGITS):
            lacks = "no classes" if task.classes is None else "no probability per class"
            hint = f"{self.source} is a {task.name} model, which has {lacks}; use features() or maps()"
            raise ConfigError("", self.source, hint)
        compute = self.module.scores if task.OUTPUT == PIXEL_LOGITS else self.module
        logits = torch.cat([compute(each).float().cpu() for each in self._batches(images, batch)])
        return logits.sigmoid() if task.multi_label else logits.softmax(dim=1)

    def __repr__(self) -> str:
        height, width = self.resolution
        return f"<{self.config.task.name} model from {self.source}, {height}x{width} pixels, on {self.device}>"

    def _batches(self, images: ImageLike | Iterable[ImageLike], batch: int) -> Iterator[Tensor]:
        at_least("batch", batch, 1)
        if isinstance(images, Tensor) and images.ndim == self._axes + 1 and images.is_floating_point():
            for part in images.split(batch) if len(images) else ():
                yield part.to(self.device)
            found = len(images) > 0
        else:
            listed, found = iter(_listed(images, self._axes)), False
            while group := _next(listed, batch):
                found = True
                yield self.preprocess(group)
        if not found:
            raise DataError("there are no images")

    @property
    def _axes(self) -> int:
        """Axes of one input: channels, and time in clips, height, and width."""
        return 4 if self.config.data.frames else 3

    def _prepared(self, number: int, image: ImageLike) -> Tensor:
        clips = self.config.data.frames > 0
        try:
            if clips:
                return normalise_clips(clip_of(image, self.config), self.mean, self.std)
            return prepare(self._decoded(image), self.config, self.mean, self.std)
        except BrokenSample as error:
            name = image.key if isinstance(image, Sample) else image if isinstance(image, (str, Path)) else number
            raise DataError(f"{'video' if clips else 'image'} {name}: {error.reason}") from error

    def _decoded(self, image: ImageLike) -> Tensor:
        """Return (C, H, W) with the channels of the model: uint8, uint16, or with `data.scale` float32 in [0, 1]."""
        channels, options = self.config.model.in_channels, DecodeOptions.of(self.config.data, self.mean)
        if isinstance(image, (str, Path)):
            return read_image(user_path(image), channels, options)
        if isinstance(image, Sample):
            return decode(image.data("image"), channels, options)
        if isinstance(image, bytes):
            return decode(image, channels, options)
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
            if not image.mode.startswith(("I", "F")):
                return decode(_png(image), channels, options)
            image = np.array(image)  # more than 8 bits, which other modes would cut off
        if not isinstance(image, (np.ndarray, Tensor)):
            raise BrokenSample(f"pass a file, bytes, a PIL image, an array, a tensor, or a sample, not {image!r:.60}")
        is_array = isinstance(image, np.ndarray)
        if isinstance(image, Tensor):
            image = image.detach().cpu().numpy()
            image = image.transpose(1, 2, 0) if image.ndim == 3 else image[..., None, None]
        image = image[..., None] if image.ndim == 2 else image
        if image.ndim != 3 or 0 in image.shape:
            raise BrokenSample(f"its shape is {image.shape}; pass arrays (H, W) or (H, W, C), or tensors (C, H, W)")
        try:
            return adapted(from_values(image), channels, options)
        except BrokenSample as error:
            if (swapped := _swapped(image.shape, channels, is_array=is_array)) is not None:
                raise BrokenSample(f"{error.reason}: {swapped}") from None
            if image.dtype.kind != "f" or options.values is not None:
                raise
            hint = "preprocessed batches are tensors (B, C, H, W) of floats"
            raise BrokenSample(f"{error.reason}, as in load(path, 'data.scale=[0,1]'); {hint}") from None


def _listed(images: ImageLike | Iterable[ImageLike], axes: int) -> Iterable[ImageLike]:
    """Return several images, or the only one as a list; a tensor or array of more axes is a batch.

    Args:
        axes: of an image (3) or of a clip (4).

    Raises:
        DataError: if it is neither.
    """
    single = isinstance(images, (str, Path, bytes, Image.Image, Sample))
    if single or (isinstance(images, (np.ndarray, Tensor)) and images.ndim <= axes):
        return [images]  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        raise DataError(f"pass an image or an iterable of images, not {images!r:.60}")
    return images  # type: ignore[return-value]


def _swapped(shape: tuple[int, ...], channels: int, *, is_array: bool) -> str | None:
    """Return the layout to pass, if an image looks as if its channels were on another axis; else None.

    Args:
        shape: as (H, W, C).
        is_array: True if an array was passed, False for a tensor.
    """
    # A tensor (H, W, C) that was taken for (C, H, W) has become (W, C, H).
    if shape[2] == channels or shape[0 if is_array else 1] != channels:
        return None
    form, fix = ("arrays", "image.transpose(1, 2, 0)") if is_array else ("tensors", "image.permute(2, 0, 1)")
    layout = "(H, W, C)" if is_array else "(C, H, W)"
    return f"{form} have the layout {layout}; pass {fix}"


def _next(images: Iterator[ImageLike], count: int) -> list[ImageLike]:
    """Return the next images. Raises DataError if shards cannot be read."""
    try:
        return list(itertools.islice(images, count))
    except BrokenSample as error:
        raise DataError(f"an image cannot be read: {error.reason}") from error


def _png(image: Image.Image) -> bytes:
    """Encode a PIL image of 8 bits without loss, so that its palette and transparency are treated as those of files."""
    stream = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def load(path: str | Path, *overrides: str, which: str = "newest", ema: bool = False, device: str = "auto") -> Model:
    """Load weights: a run, a checkpoint, a file of this package, official ones, timm, or Hugging Face.

    Args:
        path: everything that `init_from` reads.
        overrides: changes to the model, such as `model.window=24` and `data.resolution=384`.
        which: checkpoint of a run: newest or best.
        ema: use the moving average of the weights.
        device: auto, cuda, or cpu.

    Raises:
        ConfigError: if there are no such weights, or an override does not fit.
        CheckpointError: if they are damaged.
    """
    check_device(device)
    return Model(load_model(path, overrides, which=which, ema=ema), torch.device(choose_ranks(device, 1)[0]))
