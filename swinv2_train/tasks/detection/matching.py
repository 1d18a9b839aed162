"""Assignment of the detections in an image to its objects: hits, confused classes, false alarms, and missed objects.

In contrast to average precision, which assigns within each class alone, an object that a detection covers under another
class is a confusion of the two classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from swinv2_train.tasks.detection.records import Found, ImageRecord

MATCH_IOU = 0.5
NOTHING, IGNORED = -1, -2


@dataclass(frozen=True)
class Matches:
    """Assignment in one image."""

    objects: np.ndarray
    """(D,) int64: for each detection the number of its object, NOTHING for a false alarm, IGNORED for one in a crowd
    region or below the threshold."""
    hits: np.ndarray
    """(D,) bool: detections of an object of the same class, whatever the threshold."""
    missed: np.ndarray
    """Numbers of the objects that no detection above the threshold covers under any class."""
    confused: int
    """Number of detections above the threshold whose object has another class."""

    @property
    def false_alarms(self) -> int:
        return int((self.objects == NOTHING).sum())

    @property
    def errors(self) -> int:
        """Missed objects, false alarms, and confused classes."""
        return len(self.missed) + self.false_alarms + self.confused


def match(record: ImageRecord, threshold: float = 0.0) -> Matches:
    """Assign the detections to objects of their class at IoU 0.5, and those left over to objects of other classes.

    The detection with the highest score chooses first, and takes the free object with the highest IoU. A detection is
    in a crowd region of its class if half of it is.

    Args:
        threshold: lowest score of the detections that count.
    """
    truth, found = record.truth, record.found
    overlaps, inside = _overlaps(found, truth), _crowd_overlaps(found, truth)
    same = found.classes[:, None] == truth.classes[None, :]
    order = np.argsort(-found.scores, kind="stable")
    objects = np.full(len(found), NOTHING, np.int64)
    free = ~truth.is_crowd
    for detection in order:
        _take(detection, np.where(same[detection], overlaps[detection], 0.0), free, objects)
    hits = objects >= 0
    crowded = ((inside >= MATCH_IOU) & same).any(axis=1) & ~hits
    counted = found.scores >= threshold
    objects[crowded | ~counted] = IGNORED
    free = ~truth.is_crowd
    free[objects[objects >= 0]] = False
    for detection in order[(objects == NOTHING)[order]]:
        _take(detection, overlaps[detection], free, objects)
    return Matches(objects, hits, np.flatnonzero(free), int(((objects >= 0) & ~hits).sum()))


def _take(detection: int, overlaps: np.ndarray, free: np.ndarray, objects: np.ndarray) -> None:
    """Assign a detection to the free object that it overlaps most, if it does by enough."""
    if not free.any():
        return
    best = int(np.where(free, overlaps, -1.0).argmax())
    if overlaps[best] >= MATCH_IOU:
        objects[detection], free[best] = best, False


def confusion(records: Iterable[ImageRecord], classes: int, threshold: float) -> np.ndarray:
    """Return counts of objects by true and by found class, (classes + 1, classes + 1) int64.

    The last row is that of the false alarms, by their class, and the last column that of the missed objects.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for record in records:
        matches = match(record, threshold)
        paired = matches.objects >= 0
        np.add.at(counts, (record.truth.classes[matches.objects[paired]], record.found.classes[paired]), 1)
        np.add.at(counts, (classes, record.found.classes[matches.objects == NOTHING]), 1)
        np.add.at(counts, (record.truth.classes[matches.missed], classes), 1)
    return counts


@dataclass(frozen=True)
class Operation:
    """The score threshold of the highest F1, over the detections of all classes, and what it leads to."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def best_operation(records: Iterable[ImageRecord]) -> Operation:
    """Return the score threshold of the highest F1 at IoU 0.5; of equal ones, the highest threshold.

    Without a hit, it is 0.5, and precision and recall are 0.
    """
    scores, hits, objects = [], [], 0
    for record in records:
        matches = match(record)
        counted = matches.hits | (matches.objects != IGNORED)
        scores.append(record.found.scores[counted])
        hits.append(matches.hits[counted])
        objects += int((~record.truth.is_crowd).sum())
    score, hit = (np.concatenate(parts) if parts else np.zeros(0) for parts in (scores, hits))
    if not hit.any():
        return Operation(0.5, 0.0, 0.0)
    order = np.argsort(-score, kind="stable")
    score, right = score[order], np.cumsum(hit[order])
    last = np.append(score[1:] != score[:-1], True)  # detections of equal scores pass a threshold together
    count = np.arange(1, len(score) + 1)
    f1 = np.where(last, 2 * right / (count + objects), -1.0)
    best = int(f1.argmax())
    return Operation(float(score[best]), float(right[best] / count[best]), float(right[best] / objects))


def _overlaps(found: Found, truth: Found) -> np.ndarray:
    """Return the IoU of each detection with each object, (D, N) float64."""
    common = _common(found, truth)
    union = found.box_areas[:, None] + truth.box_areas[None, :] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _crowd_overlaps(found: Found, truth: Found) -> np.ndarray:
    """Return the fraction of each detection that is in each crowd region, (D, N) float64; 0 for single objects."""
    common, areas = _common(found, truth), np.broadcast_to(found.box_areas[:, None], (len(found), len(truth)))
    inside = np.divide(common, areas, out=np.zeros_like(common), where=areas > 0)
    return np.where(truth.is_crowd[None, :], inside, 0.0)


def _common(found: Found, truth: Found) -> np.ndarray:
    """Return the area that each detection has in common with each object, (D, N) float64."""
    first = np.asarray(found.boxes, np.float64).reshape(-1, 1, 4)
    second = np.asarray(truth.boxes, np.float64).reshape(1, -1, 4)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    return sides.clip(min=0).prod(axis=-1)
