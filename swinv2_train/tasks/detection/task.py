"""Detection and instance segmentation: boxes and masks of objects (Mask R-CNN, Cascade Mask R-CNN, HTC)."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.config.tasks.detection_doubts import SHORT
from swinv2_train.data.augment import normalise
from swinv2_train.data.batch import Batch, Ragged, select
from swinv2_train.data.card import Card
from swinv2_train.data.card_objects import ObjectFacts
from swinv2_train.data.object_masks import encoded
from swinv2_train.data.objects import MEMBER
from swinv2_train.data.transform import Transform
from swinv2_train.models.detection import Bitmaps, Detector, Targets
from swinv2_train.models.state import evaluating
from swinv2_train.tasks.detection.annotations import BOXES, CLASSES, CROWD, MASK_BITS, MASK_WINDOWS
from swinv2_train.tasks.detection.inference import Inference, detections
from swinv2_train.tasks.detection.merging import as_found
from swinv2_train.tasks.detection.metrics import DetectionScores, detection_metrics
from swinv2_train.tasks.detection.pictures import Shown, detection_sheet
from swinv2_train.tasks.detection.predictor import ObjectPredictor
from swinv2_train.tasks.detection.records import Category, Found, ImageRecord
from swinv2_train.tasks.detection.report import DetectionReport
from swinv2_train.tasks.detection.transform import (
    CANVAS,
    IGNORED,
    RECORD,
    SEMANTIC,
    EvaluationTransform,
    TrainingTransform,
    view_names,
)
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.task import Losses, Task, depth_noise, sample_seeds

_SHOWN_SCORE = 0.3
"""Lowest score of the detections in the figures of a run."""
_SHARDED_WEIGHTS = 3
"""ZeRO stage in which a forward pass is a collective."""


class Detection(Task):
    """The detection task.

    Args:
        categories: the classes by number, with their original ids; None: those of `task.category_ids`, or from 1.

    Raises:
        ConfigError: if the config needs masks and the data has none.
    """

    REPORT = DetectionReport
    PREDICTOR = ObjectPredictor

    def __init__(
        self, config: Config, mean: list[float], std: list[float], categories: Sequence[Category] | None = None
    ) -> None:
        assert isinstance(config.task, DetectionConfig)
        super().__init__(config, mean, std)
        self.task = config.task
        ids = self.task.category_ids or range(1, self.task.num_classes + 1)  # as for predictions
        self.categories = list(categories or (Category(each, f"class {n}") for n, each in enumerate(ids)))
        if self.task.copy_paste and not self.task.masks:
            hint = "pastes objects by their masks, and the objects of data.shards have none; set it to 0"
            raise ConfigError("task.copy_paste", self.task.copy_paste, hint)
        self.train_transform: Transform = TrainingTransform(config, mean)
        self.eval_transform: Transform = EvaluationTransform(config)
        self._scored: tuple[weakref.ref[Measured], DetectionScores] | None = None

    @classmethod
    def from_data(cls, config: Config, mean: list[float], std: list[float], card: Card | None) -> Task:
        if not config.task.classes:
            fix = (
                "the shards have no dataset card with categories: set their number, or pack the shards with "
                "swinv2-data pack --coco"
            )
            raise ConfigError("task.num_classes", 0, fix)
        if card is None or config.task.label != MEMBER:
            return cls(config, mean, std)
        return cls(config, mean, std, categories_of(card.objects, config.task.classes))

    @staticmethod
    def model_of(config: Config, size: tuple[int, int]) -> nn.Module:
        assert isinstance(config.task, DetectionConfig)
        return Detector(config.model, config.task, max(1, config.task.num_classes), size)

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """As for `Task`. Images of the same canvas run together, and the canvases one after another."""
        totals: dict[str, Tensor] = {}
        groups = self._together(batch)
        for part in [batch] if len(groups) == 1 else (select(batch, numbers) for numbers in groups):
            for name, value in self._canvas_loss(model, part).items():
                totals[name] = totals[name] + value if name in totals else value
        return Losses(totals)

    def _together(self, batch: Batch) -> list[list[int]]:
        """Return the numbers of the images that share a forward pass."""
        if self.config.engine.zero_stage == _SHARDED_WEIGHTS and self.task.scaling == SHORT:
            # A forward pass is a collective then, so every rank needs the same number of them.
            return [[number] for number in range(len(batch["position"]))]
        groups: dict[tuple[int, int], list[int]] = {}
        for number, canvas in enumerate(batch[CANVAS]):
            groups.setdefault(canvas, []).append(number)
        return list(groups.values())

    def _canvas_loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the terms of images of one canvas."""
        images, (canvas, *_) = batch["image"], batch[CANVAS]
        sizes = [tuple(image.shape[-2:]) for image in images]
        device = batch["position"].device
        semantic = None
        if SEMANTIC in batch:
            semantic = torch.stack([_padded(labels, canvas, IGNORED) for labels in batch[SEMANTIC]])
        return model(
            torch.stack([_padded(normalise(image, self.mean, self.std), canvas) for image in images]),
            torch.tensor(sizes).to(device, non_blocking=True),
            targets_of(batch),
            noise=depth_noise(self.config, model, batch["position"]),
            seeds=sample_seeds(self.config, batch["position"]),
            semantic=semantic,
        )

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Compare detections with the objects, in pixels of the originals. Every image has forward passes of its
        own."""
        records = {}
        for number, (images, record) in enumerate(self._held_out(batch)):
            # Also images that do not count: under ZeRO-3 a forward pass is a collective.
            found = detections(model, images, record.size, Inference.of(self.task))
            if batch["valid"][number]:
                records[int(batch["position"][number])] = with_found(record, as_found(found, record.size))
        return Measured({"samples": float(batch["valid"].sum())}, records)

    def metrics(self, found: Measured) -> dict[str, float]:
        return self._scores(found).metrics

    def report(
        self, found: Measured, metrics: Mapping[str, float], class_names: Sequence[str] | None = None
    ) -> DetectionReport:
        return DetectionReport(found, metrics, self.categories, self._scores(found))

    def _scores(self, found: Measured) -> DetectionScores:
        """Return the scores of an evaluation, which takes seconds for many images: the last ones are kept."""
        if self._scored is None or self._scored[0]() is not found:
            scores = detection_metrics(found.records, self.categories, masks=bool(self.task.masks))
            self._scored = weakref.ref(found), scores
        return self._scored[1]

    @torch.no_grad()
    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw rows of an image with its objects, and with the detections; those with the most errors first."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        deep, shown = batch["image"].flat.dtype == torch.uint16, []
        with evaluating(model):
            for images, record in self._held_out(batch) if RECORD in batch else self._trained(batch):
                found = detections(model, images, record.size, Inference.of(self.task))
                pixels = (images[0].cpu() * std + mean).clamp(0, 1).numpy()
                shown.append(Shown(pixels, with_found(record, as_found(found, record.size)), deep))
        return detection_sheet(shown, [category.name for category in self.categories], _SHOWN_SCORE)

    def example_batch(self, batch_size: int) -> Batch:
        batch = super().example_batch(batch_size)
        height, width = self.size
        box = torch.tensor([[0, 0, width // 2, height // 2], [width // 4, height // 4, width, height]])
        entries: dict[str, Any] = {
            "image": list(batch["image"]),
            CANVAS: [self.size] * batch_size,
            BOXES: [box.float()] * batch_size,
            CLASSES: [torch.arange(2) % self.task.num_classes] * batch_size,
            CROWD: [torch.zeros(0, 4)] * batch_size,
        }
        if self.task.masks:
            windows = box[:, [1, 0, 3, 2]]
            sides = (windows[:, 2:] - windows[:, :2]).prod(dim=1).tolist()
            bits = torch.full((sum(-(-pixels // 8) for pixels in sides),), 255, dtype=torch.uint8)
            entries |= {MASK_BITS: [bits] * batch_size, MASK_WINDOWS: [windows] * batch_size}
        if self.task.semantic_classes:
            entries[SEMANTIC] = [torch.zeros(self.size, dtype=torch.uint8)] * batch_size
        return batch | {name: Ragged(values) for name, values in entries.items()}

    def _held_out(self, batch: Batch) -> Iterator[tuple[list[Tensor], ImageRecord]]:
        """Yield the normalized images of every sample, one for each size of the test, and its record."""
        views = [batch[name] for name in view_names(len(self.task.test_scales))]
        for images, record in zip(zip(*views, strict=True), batch[RECORD], strict=True):
            yield [normalise(image, self.mean, self.std) for image in images], record

    def _trained(self, batch: Batch) -> Iterator[tuple[list[Tensor], ImageRecord]]:
        """Yield the normalized image of every training sample, and its objects as a record, for the figure."""
        for image, target, position in zip(batch["image"], targets_of(batch), batch["position"].tolist(), strict=True):
            size = (image.shape[-2], image.shape[-1])
            record = ImageRecord(position, size, _truth(target, size), _truth(target, size).chosen(np.arange(0)))
            yield [normalise(image, self.mean, self.std)], record


def categories_of(facts: ObjectFacts | None, num_classes: int) -> list[Category] | None:
    """Return the classes with their original ids, from the card; None if it does not name all of them.

    Categories without an id get the next free numbers, starting with 1, because many tools take 0 for the background.
    """
    if facts is None or len(facts.categories) != num_classes:
        return None
    used = {category.id for category in facts.categories}
    free = (number for number in itertools.count(1) if number not in used)
    return [
        Category(next(free) if category.id is None else category.id, category.name) for category in facts.categories
    ]


def targets_of(batch: Batch) -> list[Targets]:
    """Return the objects of the images of a training batch."""
    masks: Sequence[Bitmaps | None] = [None] * len(batch[BOXES])
    if MASK_BITS in batch:
        masks = [Bitmaps(*parts) for parts in zip(batch[MASK_BITS], batch[MASK_WINDOWS], strict=True)]
    return [Targets(*parts) for parts in zip(batch[BOXES], batch[CLASSES], batch[CROWD], masks, strict=True)]


def with_found(record: ImageRecord, found: Found) -> ImageRecord:
    """Return the record of an image with its detections."""
    return ImageRecord(record.image_id, record.size, record.truth, found)


def _truth(target: Targets, size: tuple[int, int]) -> Found:
    """Return the objects and crowd regions of a training image as those of a record."""
    count, crowds = len(target.boxes), len(target.crowd)
    masks: list[dict[str, Any] | None] | None = None
    if target.masks is not None:
        masks = []
        for bitmap, window in zip(target.masks.unpacked(range(count)), target.masks.windows.tolist(), strict=True):
            pixels = np.zeros(size, np.uint8)
            pixels[window[0] : window[2], window[1] : window[3]] = bitmap.cpu().numpy()
            masks.append(encoded(pixels))
        masks += [None] * crowds
    return Found(
        torch.cat([target.boxes, target.crowd]).cpu().numpy(),
        torch.cat([target.classes, target.classes.new_zeros(crowds)]).cpu().numpy(),
        np.ones(count + crowds, np.float32),
        masks,
        np.arange(count + crowds) >= count,
    )


def _padded(image: Tensor, canvas: tuple[int, int], value: int = 0) -> Tensor:
    """Pad an image or label map at the bottom and right: (..., h, w) -> (..., *canvas)."""
    return F.pad(image, (0, canvas[1] - image.shape[-1], 0, canvas[0] - image.shape[-2]), value=value)
