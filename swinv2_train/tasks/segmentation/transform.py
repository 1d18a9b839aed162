"""Samples of segmentation: random scale, crop, flips, and colors in training; the resized image in evaluation.

The order of operations and their numbers are those of mmsegmentation for ADE20K. The crop is drawn and chosen on the
label map; then no more of the image is decoded than this crop needs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.data.augment import cropped, in_range
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop, draw_part, pad, padded_image
from swinv2_train.data.photometric import Photometric
from swinv2_train.data.sample import Sample
from swinv2_train.data.transform import Transform

TRIES = 10
"""Draws of another crop if one class covers too much of the first."""


class SegmentationTransform(Transform):
    """Image and label map of a sample. The entries of a batch in training:

    - `image` (C, *size) as decoded, padded at the bottom and right,
    - `size`: int64 (2,), height and width of the image on this canvas,
    - `label` (*size), of the type of `label_type`; ignored pixels and the padding have the value `ignore`.

    In evaluation, both are ragged: `image` (C, h, w) at the size of the test, see `evaluation_crop`, and `label` (H, W)
    at the size of the original.

    Args:
        training: False for evaluation.
        ignore: value of pixels without a class, in the label maps that are read and in `label`.
    """

    def __init__(self, config: Config, *, training: bool, ignore: int) -> None:
        assert isinstance(config.task, SegmentationConfig)
        self.data, self.task = config.data, config.task
        self.size = resolution(config)
        self.training = training
        self.ignore = ignore
        self.members = ("image", config.task.label)
        self.ragged = () if training else ("image", "label")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        return self._training_entries(sample, rng) if self.training else self._test_entries(sample)

    def _training_entries(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        augment = self.data.augment
        labels = self._labels(sample)
        factor = rng.uniform(*self.task.scale) * reference_factor(sample.size, self.size, self.task)
        horizontal, vertical = rng.random(2).tolist()
        flips = horizontal < augment.hflip, vertical < augment.vflip
        crop, label = self._chosen_crop(sample, labels, factor, flips, rng)
        image = cropped(sample, crop, augment.interpolation)
        if self.task.photometric:
            image = Photometric.draw(rng)(image)
        return padded_image(image, self.size) | {"label": pad(self._checked(label), self.size, self.ignore)}

    def _test_entries(self, sample: Sample) -> dict[str, Tensor]:
        image = sample.image
        labels = self._checked(self._labels(sample))
        crop = evaluation_crop((image.shape[-2], image.shape[-1]), self.size, self.task)
        return {"image": in_range(crop.image(image, self.data.augment.interpolation)), "label": labels}

    def _labels(self, sample: Sample) -> Tensor:
        """Return the label map as stored, (H, W) uint8 or uint16, of the same size as the image."""
        labels = sample.label_map(self.task.label)
        (height, width), (tall, wide) = labels.shape, sample.size
        if (height, width) != (tall, wide):
            raise BrokenSample(f"{self.task.label}: it is {width} x {height}, and the image is {wide} x {tall}")
        return labels

    def _chosen_crop(
        self, sample: Sample, labels: Tensor, factor: float, flips: tuple[bool, bool], rng: np.random.Generator
    ) -> tuple[Crop, Tensor]:
        """Return the first crop whose classes are mixed enough, or the last one that was tried, and its label map."""
        for _ in range(1 + TRIES):
            crop = sample.aligned(draw_part(sample.size, self.size, factor, flips, rng))
            label = crop.label_map(labels)
            if crop.box[2:] == crop.source or self._is_mixed(label):
                break
        return crop, label

    def _is_mixed(self, label: Tensor) -> bool:
        """Return whether no class covers more than the allowed fraction of the pixels that are not ignored."""
        if self.task.max_class_share == 1:
            return True
        counts = np.bincount(label.numpy().ravel(), minlength=self.ignore + 1)
        counts[self.ignore] = 0
        return 0 < counts.max() <= self.task.max_class_share * counts.sum()

    def _checked(self, label: Tensor) -> Tensor:
        """Return a label map in the type of the batch; a value that is not a class breaks the sample."""
        values = label.numpy()
        wrong = (values >= self.task.num_classes) & (values != self.ignore)
        if wrong.any():
            raise BrokenSample(
                f"{self.task.label}: the value {int(values[wrong][0])} is neither one of the {self.task.num_classes} "
                f"classes, from 0, nor {self.ignore}, which is ignored: raise task.num_classes, or correct the map"
            )
        return torch.from_numpy(values.astype(label_type(self.ignore, self.task.num_classes)))


def label_type(ignore: int, num_classes: int) -> type[np.generic]:
    """Return the type of label maps in a batch: uint8 if the ignored value and all classes fit, else int32.

    int32, because torch has no arithmetic for uint16.
    """
    return np.uint8 if max(ignore, num_classes - 1) <= 255 else np.int32


def reference_factor(source: tuple[int, int], size: tuple[int, int], task: SegmentationConfig) -> float:
    """Return the factor from an image of height and width `source` to its reference size, see `task.resize`.

    Args:
        size: `data.resolution` as height and width.
    """
    if task.resize == "native":
        return 1.0
    short = min(size)
    return min(short / min(source), task.max_aspect * short / max(source))


def evaluation_crop(source: tuple[int, int], size: tuple[int, int], task: SegmentationConfig) -> Crop:
    """Return the whole image at its size in evaluation and prediction: the reference size of `task.resize`.

    Args:
        source: height and width of the image.
        size: `data.resolution` as height and width.
    """
    factor = reference_factor(source, size, task)
    tall, wide = (max(1, round(side * factor)) for side in source)
    return Crop(source, (0, 0, *source), (tall, wide), (tall, wide))
