"""Records of a synthetic evaluation: crowd, empty images, equal scores, gaps in ids, a class without objects."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.object_masks import bitmap, encoded
from swinv2_train.tasks.detection.masks import pasted
from swinv2_train.tasks.detection.metrics import results_json
from swinv2_train.tasks.detection.records import Category, Found, ImageRecord

CATEGORIES = [Category(id, name) for id, name in ((90, "kite"), (1, "buoy"), (7, "sail"), (3, "gull"), (91, "crab"))]
"""Not in the order of their ids; no object is a crab."""
_ROUND = np.hypot(*np.mgrid[-1:1:28j, -1:1:28j]) < 0.9
_WEDGE = np.add(*np.mgrid[-1:1:28j, -1:1:28j]) < 0.2


def records(count: int = 24, seed: int = 0) -> dict[int, ImageRecord]:
    """Images of different sizes with up to nine objects, the first with many; every sixth without, and some without
    detections."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(5 * count)[:count] + 1
    return {position: _record(rng, int(ids[position]), position) for position in range(count)}


def _record(rng: np.random.Generator, image_id: int, position: int) -> ImageRecord:
    size = (int(rng.integers(100, 400)), int(rng.integers(100, 400)))
    number = 0 if position % 6 == 5 else int(rng.integers(1, 80 if position == 0 else 9))
    extent = np.minimum(rng.choice([20.0, 60.0, 220.0], (number, 1)) * rng.uniform(0.5, 1.0, (number, 2)), size[::-1])
    corner = rng.random((number, 2)) * (np.array(size[::-1]) - extent)
    boxes = np.round(np.concatenate([corner, corner + extent], axis=1), 2)
    classes, crowd = rng.integers(0, 4, number), rng.random(number) < 0.1
    masks = pasted(np.repeat(_ROUND[None], number, axis=0), boxes, size)
    areas = np.round((extent.prod(axis=1) * 0.7), 2)
    truth = Found(boxes, classes, np.ones(number, np.float32), masks, crowd, areas)
    return ImageRecord(image_id, size, truth, _found(rng, truth, size, empty=position % 7 == 3))


def _found(rng: np.random.Generator, truth: Found, size: tuple[int, int], *, empty: bool) -> Found:
    """Most objects a little off, some twice or under another class, and false alarms; scores in steps of 0.1."""
    copies = np.repeat(np.arange(len(truth)), rng.integers(0, 3, len(truth)))
    boxes = truth.boxes[copies] + rng.normal(0, 2, (len(copies), 4))
    classes = np.where(rng.random(len(copies)) < 0.2, rng.integers(0, 5, len(copies)), truth.classes[copies])
    corner = rng.random((3, 2)) * 60
    boxes = np.concatenate([boxes, np.concatenate([corner, corner + 20], axis=1)]).astype(np.float32)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    boxes = boxes.clip(0, np.array([size[1], size[0]] * 2)).astype(np.float32)
    boxes = boxes[:0] if empty else boxes
    classes = np.concatenate([classes, rng.integers(0, 5, 3)])[: len(boxes)]
    scores = np.sort(rng.integers(1, 11, len(boxes)) / 10)[::-1].astype(np.float32)
    shapes = np.where((rng.random(len(boxes)) < 0.8)[:, None, None], _ROUND, _WEDGE)
    return Found(boxes, classes, scores, pasted(shapes, boxes, size))


def disturbed(record: ImageRecord) -> Found:
    """Detections of an evaluation by a model that is neither bad nor perfect: most objects, some a pixel off, some of
    class 1 as class 0, masks without their first rows, and a false alarm."""
    size, rng = record.size, np.random.default_rng([7, int(record.image_id)])
    truth = record.truth.chosen(~record.truth.is_crowd & (rng.random(len(record.truth)) < 0.9))
    assert truth.masks is not None
    boxes, masks = [np.array([1.0, 1.0, 12.0, 9.0])], [np.zeros(size, np.uint8)]
    masks[0][1:9, 1:12] = 1
    for box, mask in zip(truth.boxes, truth.masks, strict=True):
        assert mask is not None
        down, right = (int(pixels) for pixels in rng.integers(0, 2, 2))
        boxes.append(box + np.array([right, down, right, down]))
        masks.append(np.pad(bitmap(mask, size), ((down, 0), (right, 0)))[: size[0], : size[1]])
        masks[-1][: int(box[1]) + 2] = 0
    classes = np.concatenate([[1], np.where((truth.classes == 1) & (rng.random(len(truth)) < 0.15), 0, truth.classes)])
    limits = np.array([size[1], size[0]] * 2)
    scores = np.sort(rng.integers(1, 10, len(boxes)) / 10)[::-1].astype(np.float32)
    found = np.stack(boxes).clip(0, limits).astype(np.float32)
    order = rng.permutation(len(boxes))
    return Found(found[order], classes[order], scores, [encoded(masks[place]) for place in order])


def judged(records: Mapping[int, ImageRecord], categories: Sequence[Category], kind: str) -> list[float]:
    """The twelve numbers of pycocotools, from the results JSON and the original ids."""
    return judge(truth_json(records, categories), copy.deepcopy(results_json(records, categories, kind)), kind)


def judge(annotations: dict[str, Any] | Path, results: list[dict[str, Any]] | Path, kind: str) -> list[float]:
    """The twelve numbers of pycocotools, from contents or files; kind is box or mask."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations)) if isinstance(annotations, Path) else COCO()
        if isinstance(annotations, dict):
            truth.dataset = annotations
            truth.createIndex()
        found = truth.loadRes(str(results) if isinstance(results, Path) else results)
        evaluation = COCOeval(truth, found, {"box": "bbox", "mask": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def truth_json(records: Mapping[int, ImageRecord], categories: Sequence[Category]) -> dict[str, Any]:
    """The annotations as COCO has them."""
    annotations = []
    for record in records.values():
        truth = record.truth
        for place, (left, top, right, bottom) in enumerate(truth.boxes.tolist()):
            annotations.append(
                {
                    "id": 10 * len(annotations) + 3,
                    "image_id": record.image_id,
                    "category_id": categories[truth.classes[place]].id,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(truth.areas[place]) if truth.areas is not None else None,
                    "iscrowd": int(truth.is_crowd[place]),
                    "segmentation": truth.masks[place] if truth.masks else [],
                }
            )
    images = [{"id": record.image_id, "height": record.size[0], "width": record.size[1]} for record in records.values()]
    named = [{"id": category.id, "name": category.name} for category in categories]
    return {"images": images, "annotations": annotations, "categories": named}
