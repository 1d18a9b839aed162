"""Samples of detection: one drawn geometry for the image, its boxes, and its masks; in evaluation the entire image.

Masks stay polygons or run lengths until the end. Then each is rasterized once, in its own window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.data.augment import cropped, in_range
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop
from swinv2_train.data.mix import partner_of
from swinv2_train.data.objects import Objects
from swinv2_train.data.order import sample_rng
from swinv2_train.data.sample import Sample
from swinv2_train.data.transform import Transform
from swinv2_train.tasks.detection.annotations import (
    BOXES,
    CLASSES,
    CROWD,
    MASK_BITS,
    MASK_WINDOWS,
    Annotations,
    annotations_under,
)
from swinv2_train.tasks.detection.copy_paste import draw_pasted, paste, pasted_image
from swinv2_train.tasks.detection.drawing import Drawing
from swinv2_train.tasks.detection.records import Found, ImageRecord

CANVAS, SEMANTIC, RECORD = "canvas", "semantic", "record"
IGNORED = 255
"""Value of pixels without a class in the label maps of the semantic branch."""


def view_names(count: int) -> tuple[str, ...]:
    """Return the entries with an image at each of the sizes of an evaluation."""
    return ("image", *(f"image_{number}" for number in range(2, count + 1)))


class _ObjectsTransform(Transform):
    """Base of both transforms."""

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, DetectionConfig)
        self.task, self.data = config.task, config.data

    def objects(self, sample: Sample) -> Objects:
        """Return the objects of a sample.

        Raises:
            BrokenSample: if they cannot be read, belong to an image of another size, or have an unknown class.
        """
        name, most = self.task.label, self.task.num_classes
        found = sample.objects(name)
        (height, width), (tall, wide) = found.size, sample.size
        if (height, width) != (tall, wide):
            raise BrokenSample(f"{name}: it is for {width} x {height} pixels, and the image has {wide} x {tall}")
        unknown = found.categories >= most
        if unknown.any():
            raise BrokenSample(
                f"{name}: category {int(found.categories[unknown][0])} is not one of the {most} classes, from 0"
            )
        return found


class TrainingTransform(_ObjectsTransform):
    """Sample of a training step. All entries of a batch are ragged:

    - `image` (C, h, w) as decoded, `canvas` (height, width) that it is padded to at the bottom and right,
    - `boxes` (N, 4) float32, `classes` (N,) int64, and `crowd` (M, 4) float32, in its pixels,
    - with masks, `mask_bits` uint8 and `mask_windows` (N, 4) int64, see `models.detection.Bitmaps`,
    - with a semantic branch, `semantic` (h, w) uint8, 255 for pixels without a class.

    With `task.copy_paste`, the partner is the other sample of a pair of positions.

    Args:
        mean: per-channel mean of the data in [0, 1].
    """

    def __init__(self, config: Config, mean: Sequence[float]) -> None:
        super().__init__(config)
        self.drawing = Drawing(config)
        self.seed, self.mean = config.seed, list(mean)
        self.semantic = self.task.semantic_label if self.task.semantic_classes else None
        self.members = ("image", self.task.label, *((self.semantic,) if self.semantic else ()))
        masks = (MASK_BITS, MASK_WINDOWS) if self.task.masks else ()
        self.ragged = ("image", CANVAS, BOXES, CLASSES, CROWD, *masks, *((SEMANTIC,) if self.semantic else ()))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        objects = self.objects(sample)
        drawn = self.drawing.draw(sample.size, sample.batch, rng)
        crop = sample.aligned(drawn.crop)
        try:
            found = annotations_under(objects, crop, masks=bool(self.task.masks), most=self.task.max_objects)
        except BrokenSample as error:
            raise BrokenSample(f"{self.task.label}: {error.reason}") from None
        labels = {SEMANTIC: self._labels(sample, crop)} if self.semantic else {}
        image = cropped(sample, crop, self.data.augment.interpolation)
        return {"image": image, CANVAS: drawn.canvas} | found.entries() | labels

    def partner(self, position: int) -> int | None:
        share = self.task.copy_paste
        if not share or sample_rng(self.seed, position, "copy-paste").random() >= share:
            return None
        return partner_of(position, 1)

    def mix(self, own: dict[str, Any], other: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        pasted = Annotations.of_entries(other)
        assert pasted.windows is not None
        with_mask = np.flatnonzero([bottom > top for top, _, bottom, _ in pasted.windows])
        pasted = pasted.taken(with_mask[draw_pasted(len(with_mask), rng)])
        sides = zip(own["image"].shape[-2:], other["image"].shape[-2:], own[CANVAS], strict=True)
        size = tuple(min(max(pair), most) for *pair, most in sides)
        found, covered = paste(Annotations.of_entries(own), pasted, size, self.task.max_objects)
        mixed = own | found.entries() | {"image": pasted_image(own["image"], other["image"], size, covered, self.mean)}
        if self.semantic:
            maps = (own[SEMANTIC][None], other[SEMANTIC][None])
            mixed[SEMANTIC] = pasted_image(*maps, size, covered, [1.0])[0]  # 1 means 255, which is ignored
        return mixed

    def _labels(self, sample: Sample, crop: Crop) -> Tensor:
        """Return the label map under a crop, uint8."""
        assert self.semantic is not None
        labels = sample.label_map(self.semantic)
        if tuple(labels.shape) != crop.source:
            (height, width), (tall, wide) = labels.shape, crop.source
            raise BrokenSample(f"{self.semantic}: it is {width} x {height}, and the image is {wide} x {tall}")
        found = crop.label_map(labels).numpy()
        wrong = (found >= self.task.semantic_classes) & (found != IGNORED)
        if wrong.any():
            raise BrokenSample(
                f"{self.semantic}: the value {int(found[wrong][0])} is neither one of the "
                f"{self.task.semantic_classes} semantic classes, from 0, nor {IGNORED}, which is ignored"
            )
        return torch.from_numpy(found.astype(np.uint8))


class EvaluationTransform(_ObjectsTransform):
    """Held-out sample. All entries of a batch are ragged:

    - `image` (C, h, w), and `image_2` and so on for further values of `task.test_scales`: the entire image at the size
      of each,
    - `record`: an `ImageRecord` with the true objects in pixels of the original, and no detections.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config
        self.members = ("image", self.task.label)
        self.images = view_names(len(self.task.test_scales))
        self.ragged = (*self.images, RECORD)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        image = sample.image
        objects = self.objects(sample)
        crops = evaluation_crops(self.config, (image.shape[-2], image.shape[-1]))
        views = [in_range(crop.image(image, self.data.augment.interpolation)) for crop in crops]
        identifier = sample.position + 1 if objects.image_id is None else objects.image_id
        nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        record = ImageRecord(identifier, objects.size, self._truth(objects), nothing)
        return dict(zip(self.images, views, strict=True)) | {RECORD: record}

    def _truth(self, objects: Objects) -> Found:
        name, masks = self.task.label, bool(self.task.masks)
        try:
            found = Found.of(objects, masks=masks)
        except BrokenSample as error:
            raise BrokenSample(f"{name}: {error.reason}") from None
        bare = np.array([mask is None for mask in objects.masks], bool) & ~objects.crowd
        if masks and bare.any():
            raise BrokenSample(f"{name}: object {int(bare.argmax())} has no mask, which task.masks=true requires")
        return found


def evaluation_crops(config: Config, source: tuple[int, int]) -> list[Crop]:
    """Return the entire image at each of its sizes in evaluation and prediction.

    Args:
        source: height and width of the image.
    """
    assert isinstance(config.task, DetectionConfig)
    sizes = [config.task.test_size(config, source, scale) for scale in config.task.test_scales]
    return [Crop(source, (0, 0, *source), size, size) for size in sizes]
