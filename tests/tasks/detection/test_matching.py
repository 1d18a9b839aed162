"""Detections of planted objects: hits, confused classes, false alarms, misses, crowd, and the best threshold."""

from __future__ import annotations

import numpy as np
import pytest

from swinv2_train.tasks.detection.matching import IGNORED, NOTHING, best_operation, confusion, match
from swinv2_train.tasks.detection.metrics import detection_metrics
from swinv2_train.tasks.detection.records import Found, ImageRecord
from tests.tasks.detection.synthetic import CATEGORIES, records


def square(place: int) -> list[float]:
    """A square of 10 pixels; places are far from each other."""
    return [20.0 * place, 0.0, 20.0 * place + 10, 10.0]


def record(
    truth: list[tuple[int, int]], found: list[tuple[int, int, float]], crowd: tuple[int, ...] = ()
) -> ImageRecord:
    """True objects by place and class; detections by place, class, and score."""
    boxes = np.array([square(place) for place, _ in truth]).reshape(-1, 4)
    kinds = np.array([kind for _, kind in truth], np.int64)
    regions = np.isin(np.arange(len(truth)), crowd)
    detected = np.array([square(place) for place, _, _ in found], np.float32).reshape(-1, 4)
    scores = np.array([score for _, _, score in found], np.float32)
    return ImageRecord(
        1,
        (20, 400),
        Found(boxes, kinds, np.ones(len(truth), np.float32), crowd=regions),
        Found(detected, np.array([kind for _, kind, _ in found], np.int64), scores),
    )


def test_every_kind_of_detection() -> None:
    planted = record(
        [(0, 0), (1, 1), (2, 0), (3, 2), (4, 1)],
        # a hit, its copy, two classes for one object, a false alarm, in a crowd region, a hit below the threshold
        [(0, 0, 0.9), (0, 0, 0.8), (1, 2, 0.95), (1, 1, 0.6), (9, 1, 0.7), (3, 2, 0.9), (4, 1, 0.3)],
        crowd=(3,),
    )
    matches = match(planted, 0.5)
    assert matches.objects.tolist() == [0, NOTHING, NOTHING, 1, NOTHING, IGNORED, IGNORED]
    assert matches.hits.tolist() == [True, False, False, True, False, False, True]
    assert matches.missed.tolist() == [2, 4]
    assert (matches.false_alarms, matches.confused, matches.errors) == (3, 0, 5)
    table = confusion([planted], 3, 0.5)
    assert table.tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]


def test_an_object_under_another_class_is_a_confusion() -> None:
    matches = match(record([(0, 0), (1, 1)], [(1, 2, 0.9), (0, 1, 0.8), (0, 2, 0.7)]), 0.5)
    assert matches.objects.tolist() == [1, 0, NOTHING]
    assert not matches.hits.any()
    assert (matches.confused, matches.false_alarms, matches.errors) == (2, 1, 3)


def test_the_higher_score_chooses_and_takes_the_nearest() -> None:
    near = record([(0, 0), (0, 0)], [(0, 0, 0.5), (0, 0, 0.9)])
    near.truth.boxes[1] += [0, 1, 0, 1]
    near.found.boxes[1] += [0, 0.8, 0, 0.8]
    assert match(near).objects.tolist() == [0, 1]
    near.found.scores[:] = near.found.scores[::-1]
    near.found.boxes[0] += [0, 0.6, 0, 0.6]
    assert match(near).objects.tolist() == [1, 0]


def test_the_best_threshold_has_the_highest_f1() -> None:
    planted = record(
        [(0, 0), (1, 0), (2, 0), (3, 0)], [(0, 0, 0.9), (9, 0, 0.8), (1, 0, 0.7), (2, 0, 0.7), (8, 0, 0.1)]
    )
    best = best_operation([planted, record([], [(0, 1, 0.05)])])
    assert best.threshold == pytest.approx(0.7)
    assert (best.precision, best.recall) == (0.75, 0.75)
    assert best.f1 == 0.75
    assert best_operation([record([(0, 0)], [(1, 0, 0.9)])]).f1 == 0.0
    # In a crowd region, a detection is neither a hit nor a false alarm.
    crowd = best_operation([record([(0, 0), (1, 0)], [(1, 0, 0.9), (0, 0, 0.5)], crowd=(1,))])
    assert (crowd.threshold, crowd.precision, crowd.recall) == (0.5, 1.0, 1.0)


def test_every_object_and_every_detection_is_counted_once() -> None:
    every = records()
    threshold = 0.35
    table = confusion(every.values(), 5, threshold)
    singles = np.concatenate([one.truth.classes[~one.truth.is_crowd] for one in every.values()])
    assert table[:-1].sum(axis=1).tolist() == np.bincount(singles, minlength=5).tolist()
    ignored = sum(int((match(one, threshold).objects == IGNORED).sum()) for one in every.values())
    assert table[:, :-1].sum() == sum(len(one.found) for one in every.values()) - ignored
    assert (np.diag(table)[:4] > 0).all()
    recall = np.diag(table)[:5].sum() / len(singles)
    scores = detection_metrics(every, CATEGORIES, masks=False)
    assert scores.operation.f1 >= best_operation(every.values()).f1 > 0.3
    assert 0 < recall < 1
