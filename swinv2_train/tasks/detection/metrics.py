"""Average precision and recall of COCO, of boxes and of masks, by faster-coco-eval.

All twelve numbers equal those of pycocotools up to their last digit: it adds 2.2e-16 to the denominators of precisions.
Without that, they are bitwise equal. They do not depend on the order of the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinv2_train.data.errors import DataError
from swinv2_train.tasks.detection.matching import Operation, best_operation, confusion
from swinv2_train.tasks.detection.records import Category, Found, ImageRecord, id_order, in_order

BOX, MASK = "box", "mask"
IOUS = np.linspace(0.5, 0.95, 10)
COUNTED = 100
"""Detections of a class in an image that COCO counts."""
_NUMBERS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
_EVALUATED = {BOX: "bbox", MASK: "segm"}
_MOST_CONFUSION_CLASSES = 1000


@dataclass(frozen=True)
class Curves:
    """Precision and recall of the boxes or of the masks, over objects of all sizes; nan for a class without objects.

    At most 100 detections of a class in an image count, as everywhere in COCO.
    """

    precision: np.ndarray
    """(10, 101, K) float64: for each IoU of `IOUS` and each recall from 0 to 1 in steps of 0.01, the highest precision
    at that recall or a higher one."""
    recall: np.ndarray
    """(10, K) float64: the recall of all detections."""

    def average_precision(self, iou: float | None = None) -> np.ndarray:
        """Return the average precision of each class, (K,), at one IoU, or over all of them."""
        part = self.precision if iou is None else self.precision[np.isclose(IOUS, iou)]
        return part.mean(axis=(0, 1))

    @property
    def average_recall(self) -> np.ndarray:
        """(K,), over all IoUs."""
        return self.recall.mean(axis=0)


@dataclass(frozen=True)
class DetectionScores:
    """Results of an evaluation."""

    metrics: dict[str, float]
    """By name. From 0 to 1; nan if nothing is known, such as for small objects if there are none."""
    curves: dict[str, Curves]
    """Of `box`, and with masks of `mask`."""
    truths: np.ndarray
    """(K,) int64: objects of each class, without crowd regions."""
    crowd: int
    """Crowd regions."""
    detections: np.ndarray
    """(K,) int64."""
    most_detections: int
    """Most detections in one image."""
    operation: Operation
    """Score threshold of the highest F1, with its precision and recall."""
    confusion: np.ndarray | None
    """(K + 1, K + 1) int64, rows true, at this threshold; see `matching.confusion`. None for very many classes."""


def detection_metrics(
    records: Mapping[int, ImageRecord], categories: Sequence[Category], *, masks: bool
) -> DetectionScores:
    """Evaluate the detections in held-out images.

    The metrics are `box_ap` (the mean over the IoUs .5 to .95), `box_ap50`, `box_ap75`, and `box_ap_small`,
    `box_ap_medium`, and `box_ap_large` of objects below 32 x 32 pixels, below 96 x 96, and above; `box_ar_1`,
    `box_ar_10`, and `box_ar_100`, the mean recall of the best 1, 10, or 100 detections of each class in an image, and
    `box_ar_small`, `box_ar_medium`, and `box_ar_large`; with masks the same that begin with `mask_`; and `samples`, the
    number of images. If a detector returns fewer than 100 detections for an image, `ar_100` is the recall of all of
    them; further detections of a class than 100 count nowhere.

    Args:
        records: by position. Equal scores count in the order of the ids of the images, then of the positions.
        categories: the classes by number.
        masks: evaluate masks too; then all objects that are not crowd regions must have one.

    Raises:
        DataError: if an object has no mask, or a class that is not in the table.
        RunError: if a detection is not finite.
    """
    ordered = in_order(records)
    for record in ordered:
        _check(record, len(categories), masks=masks)
    metrics: dict[str, float] = {}
    curves = {}
    for kind in (BOX, MASK) if masks else (BOX,):
        numbers, curves[kind] = _evaluated(ordered, categories, kind)
        metrics |= {f"{kind}_{name}": value for name, value in zip(_NUMBERS, numbers, strict=True)}
    operation, classes = best_operation(ordered), len(categories)
    return DetectionScores(
        metrics=metrics | {"samples": float(len(ordered))},
        curves=curves,
        truths=_counts((record.truth.classes[~record.truth.is_crowd] for record in ordered), classes),
        crowd=sum(int(record.truth.is_crowd.sum()) for record in ordered),
        detections=_counts((record.found.classes for record in ordered), classes),
        most_detections=max((len(record.found) for record in ordered), default=0),
        operation=operation,
        confusion=confusion(ordered, classes, operation.threshold) if classes <= _MOST_CONFUSION_CLASSES else None,
    )


def results_json(
    records: Mapping[int, ImageRecord], categories: Sequence[Category], kind: str = BOX
) -> list[dict[str, Any]]:
    """Return detections in the results format of COCO, with the original ids of images and categories.

    Boxes and masks are separate lists: pycocotools takes the area of a detection from its box if there is one, so in a
    joint list, the numbers for small, medium, and large masks would be wrong.

    Args:
        kind: `box` or `mask`.
    """
    return [
        {"image_id": record.image_id, "category_id": categories[number].id, **region, "score": score}
        for record in in_order(records)
        for number, score, region in _detections(record.found, kind)
    ]


def _check(record: ImageRecord, classes: int, *, masks: bool) -> None:
    record.check()
    for found in (record.truth, record.found):
        if len(found) and not 0 <= found.classes.min() <= found.classes.max() < classes:
            raise DataError(
                f"image {record.image_id} has an object of class {found.classes.max()}, but the classes are 0 to "
                f"{classes - 1}: evaluate on shards whose categories are those of the model"
            )
    if masks:
        regions = record.truth.masks or [None] * len(record.truth)
        if any(region is None for region, crowd in zip(regions, record.truth.is_crowd, strict=True) if not crowd):
            raise DataError(f"image {record.image_id} has objects without a mask: set task.masks=false")


def _counts(classes: Iterator[np.ndarray], length: int) -> np.ndarray:
    counts = np.zeros(length, np.int64)
    for numbers in classes:
        counts += np.bincount(numbers, minlength=length)
    return counts


def _evaluated(ordered: Sequence[ImageRecord], categories: Sequence[Category], kind: str) -> tuple[list[float], Curves]:
    """Return the twelve numbers, nan if COCO has -1, and the curves."""
    if not ordered:
        nothing = np.full((len(IOUS), 101, len(categories)), np.nan)
        return [np.nan] * len(_NUMBERS), Curves(nothing, nothing[:, 0])
    from faster_coco_eval import COCO, COCOeval_faster

    # Images and categories are numbered in the order of their ids: it decides between equal scores, and the mean over
    # the categories rounds in this order.
    order = sorted(range(len(categories)), key=lambda number: id_order(categories[number].id))
    numbers = {category: number for number, category in enumerate(order, 1)}
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": number, "height": record.size[0], "width": record.size[1]}
            for number, record in enumerate(ordered, 1)
        ],
        "categories": [{"id": number, "name": categories[category].name} for category, number in numbers.items()],
        "annotations": list(_annotations(ordered, numbers, kind)),
    }
    truth.createIndex()
    detections = [
        {"image_id": number, "category_id": numbers[category], **region, "score": score}
        for number, record in enumerate(ordered, 1)
        for category, score, region in _detections(record.found, kind)
    ]
    if detections:
        found = truth.loadRes(detections)
    else:  # which loadRes of older versions cannot read
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
    evaluator = COCOeval_faster(truth, found, _EVALUATED[kind], print_function=_silent)
    evaluator.run()
    inverse = np.argsort(order)
    precision, recall = (evaluator.eval[name][..., 0, -1] for name in ("precision", "recall"))
    return [_known(value) for value in evaluator.stats], Curves(
        np.where(precision > -1, precision, np.nan)[..., inverse], np.where(recall > -1, recall, np.nan)[..., inverse]
    )


def _annotations(ordered: Sequence[ImageRecord], numbers: Mapping[int, int], kind: str) -> Iterator[dict[str, Any]]:
    """Yield the true objects as COCO has them. Ids begin with 1, because 0 means "not matched"."""
    number = 0
    for image, record in enumerate(ordered, 1):
        found = record.truth
        areas = found.box_areas if found.areas is None else found.areas
        for place, (category, _, region) in enumerate(_detections(found, kind)):
            number += 1
            yield {
                "id": number,
                "image_id": image,
                "category_id": numbers[category],
                "iscrowd": int(found.is_crowd[place]),
                "area": float(areas[place]),
                **(region if region.get("segmentation", True) else _filled(found.boxes[place], record.size)),
            }


def _detections(found: Found, kind: str) -> Iterator[tuple[int, float, dict[str, Any]]]:
    """Yield the class, the score, and the box or mask of each object."""
    for place in range(len(found)):
        if kind == BOX:
            left, top, right, bottom = map(float, found.boxes[place])
            region: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top]}
        else:
            region = {"segmentation": found.masks[place] if found.masks else None}
        yield int(found.classes[place]), float(found.scores[place]), region


def _filled(box: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return a box as a mask."""
    from faster_coco_eval import mask as coco_masks

    left, top, right, bottom = map(float, box)
    (code,) = coco_masks.frPyObjects([[left, top, right, top, right, bottom, left, bottom]], *size)
    return {"segmentation": code}


def _silent(*_: object) -> None:
    """Discard the progress messages of the evaluator."""


def _known(value: float) -> float:
    return float("nan") if value == -1 else float(value)
