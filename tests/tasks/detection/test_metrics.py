"""Average precision and recall equal those of pycocotools, whoever gathers which records in which order."""

from __future__ import annotations

import copy
import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from swinv2_train.data.errors import DataError
from swinv2_train.errors import RunError
from swinv2_train.tasks.detection.masks import pasted
from swinv2_train.tasks.detection.metrics import DetectionScores, detection_metrics, results_json
from swinv2_train.tasks.detection.records import Category, Found, ImageRecord
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.outcome import combine
from tests.engine.threads import on_ranks
from tests.tasks.detection.synthetic import CATEGORIES, judged, records

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")


@pytest.fixture(scope="module")
def every() -> dict[int, ImageRecord]:
    return records()


@pytest.fixture(scope="module")
def scores(every: Mapping[int, ImageRecord]) -> DetectionScores:
    return detection_metrics(every, CATEGORIES, masks=True)


def numbers(scores: DetectionScores, kind: str) -> list[float]:
    return [-1.0 if math.isnan(value) else value for value in (scores.metrics[f"{kind}_{name}"] for name in NAMES)]


def evaluated(every: Mapping[int, ImageRecord]) -> DetectionScores:
    return detection_metrics(every, CATEGORIES, masks=True)


def test_the_set_has_every_corner(every: dict[int, ImageRecord]) -> None:
    truths, found = [one.truth for one in every.values()], [one.found for one in every.values()]
    assert any(truth.is_crowd.any() for truth in truths)
    assert any(not len(truth) and len(other) for truth, other in zip(truths, found, strict=True))
    assert any(len(truth) and not len(other) for truth, other in zip(truths, found, strict=True))
    assert any(len(np.unique(other.scores)) < len(other) for other in found)
    assert {int(number) for truth in truths for number in truth.classes} == {0, 1, 2, 3}
    assert 4 in np.concatenate([other.classes for other in found])


@pytest.fixture
def plain_division(monkeypatch: pytest.MonkeyPatch) -> None:
    """pycocotools as it is, but for the 2.2e-16 that it adds to the denominator of a precision to avoid 0 / 0."""
    monkeypatch.setattr(np, "spacing", lambda _: 1e-300)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_all_numbers_are_those_of_pycocotools(
    kind: str, every: dict[int, ImageRecord], scores: DetectionScores
) -> None:
    expected = judged(every, CATEGORIES, kind)
    assert numbers(scores, kind) == pytest.approx(expected, rel=0, abs=1e-15)
    assert numbers(scores, kind)[6:] == expected[6:]
    assert all(0 < value < 1 for value in expected)
    assert scores.metrics["samples"] == len(every)
    assert len(scores.metrics) == 25


@pytest.mark.usefixtures("plain_division")
@pytest.mark.parametrize("seed", range(2))
def test_they_are_bitwise_those_of_pycocotools_without_its_summand(seed: int) -> None:
    every = records(seed=seed)
    scores = evaluated(every)
    for kind in ("box", "mask"):
        assert numbers(scores, kind) == judged(every, CATEGORIES, kind)


@pytest.mark.usefixtures("plain_division")
@pytest.mark.parametrize("positions", [[0], [5], [3], [1, 5], [0, 1, 2, 8, 9, 10]])
def test_parts_of_the_set_are_those_of_pycocotools(positions: list[int], every: dict[int, ImageRecord]) -> None:
    part = {position: every[position] for position in positions}
    for kind in ("box", "mask"):
        some = any(len(record.found) for record in part.values())  # without any, pycocotools fails
        expected = judged(part, CATEGORIES, kind) if some else None
        found = numbers(detection_metrics(part, CATEGORIES, masks=True), kind)
        assert found == expected or (expected is None and set(found) <= {0.0, -1.0})


def test_ranks_and_order_change_nothing(every: dict[int, ImageRecord], scores: DetectionScores) -> None:
    class Detection:
        def metrics(self, found: Measured) -> dict[str, float]:
            assert list(found.records) == sorted(found.records)
            return evaluated(found.records).metrics

    for world_size in (1, 2, 3):

        def work(ranks: Any, world_size: int = world_size) -> Any:
            own = dict(reversed([(place, one) for place, one in every.items() if place % world_size == ranks.rank]))
            return combine(Detection(), Measured({}, own), ranks)  # type: ignore[arg-type]

        for outcome in on_ranks(world_size, work):
            assert outcome.metrics == scores.metrics
    shuffled = {place: every[place] for place in np.random.default_rng(0).permutation(len(every)).tolist()}
    again = evaluated(shuffled)
    assert again.metrics == scores.metrics
    for kind in scores.curves:
        np.testing.assert_array_equal(again.curves[kind].precision, scores.curves[kind].precision)
    assert results_json(shuffled, CATEGORIES) == results_json(every, CATEGORIES)


def test_the_scores_of_the_classes_average_to_those_of_all(
    every: dict[int, ImageRecord], scores: DetectionScores
) -> None:
    for kind, curves in scores.curves.items():
        assert np.nanmean(curves.average_precision()) == pytest.approx(scores.metrics[f"{kind}_ap"])
        assert np.nanmean(curves.average_precision(0.75)) == pytest.approx(scores.metrics[f"{kind}_ap75"])
        assert np.nanmean(curves.average_recall) == pytest.approx(scores.metrics[f"{kind}_ar_100"])
        assert np.flatnonzero(np.isnan(curves.average_precision())).tolist() == [4]
    # A class alone, as pycocotools has it: the number of a class is its place in the table, not the order of its ids.
    for number in range(4):
        alone = {place: only(record, number) for place, record in every.items()}
        expected = judged(alone, CATEGORIES[number : number + 1], "box")[0]
        assert scores.curves["box"].average_precision()[number] == pytest.approx(expected, abs=1e-12)
    singles = np.concatenate([one.truth.classes[~one.truth.is_crowd] for one in every.values()])
    assert scores.truths.tolist() == [*np.bincount(singles), 0]
    assert scores.crowd == sum(one.truth.is_crowd.sum() for one in every.values()) > 0
    assert scores.detections.sum() == len(results_json(every, CATEGORIES))


def only(record: ImageRecord, number: int) -> ImageRecord:
    """The objects of one class, under number 0."""
    parts = [found.chosen(found.classes == number) for found in (record.truth, record.found)]
    truth, found = (replace(part, classes=np.zeros_like(part.classes)) for part in parts)
    return replace(record, truth=truth, found=found)


def test_ids_may_be_names_or_repeat(every: dict[int, ImageRecord], scores: DetectionScores) -> None:
    """As of a set without ids, or two sets together: every record is an image."""
    few = {place: every[place] for place in range(6)}
    named = {place: replace(record, image_id=f"{place}.jpg") for place, record in few.items()}
    same = {place: replace(record, image_id=7) for place, record in few.items()}
    plain = {place: replace(record, image_id=place + 1) for place, record in few.items()}
    assert evaluated(named).metrics == evaluated(same).metrics == evaluated(plain).metrics
    table = [Category(f"c{number}", category.name) for number, category in enumerate(CATEGORIES)]
    other = detection_metrics(plain, table, masks=False).metrics
    assert other["box_ap"] == pytest.approx(evaluated(plain).metrics["box_ap"])


def test_without_objects_or_images_nothing_is_known(every: dict[int, ImageRecord]) -> None:
    for part in ({5: every[5]}, {}):
        scores = detection_metrics(part, CATEGORIES, masks=True)
        assert scores.metrics.pop("samples") == len(part)
        assert all(math.isnan(value) for value in scores.metrics.values())
        assert scores.operation.f1 == 0.0
        assert np.isnan(scores.curves["mask"].average_precision(0.5)).all()


def test_without_detections_everything_known_is_zero(every: dict[int, ImageRecord]) -> None:
    none = {place: replace(one, found=one.found.chosen(np.zeros(0, int))) for place, one in every.items()}
    scores = evaluated(none)
    assert {value for name, value in scores.metrics.items() if name != "samples"} == {0.0}
    assert results_json(none, CATEGORIES) == []
    assert scores.confusion is not None
    assert scores.confusion[:, -1].tolist() == [*scores.truths[:4], 0, 0]


def test_the_memory_of_an_evaluation_is_a_few_kilobytes_per_detection() -> None:
    """By the most that Python allocates; masks are not unpacked, whatever their size."""
    images = {n: copy.deepcopy(record) for n, record in records(12).items()}
    counts = [sum(len(one.found) + len(one.truth) for one in images.values())]
    detection_metrics(images, CATEGORIES, masks=True)  # modules and caches
    more = {n: copy.deepcopy(images[n % 12]) for n in range(36)}
    for number, record in more.items():
        record.image_id = number
    counts.append(3 * counts[0])
    peaks = []
    for every in (images, more):
        tracemalloc.start()
        detection_metrics(every, CATEGORIES, masks=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 3000


def test_a_hundred_detections_of_a_class_count() -> None:
    box = np.array([[10.0, 10.0, 50.0, 50.0]])
    truth = Found(box, np.zeros(1, np.int64), np.ones(1, np.float32), areas=np.array([1600.0]))
    others = np.tile([60.0, 60.0, 90.0, 90.0], (100, 1))
    for number, expected in ((99, 1.0), (100, 0.0)):  # wrong detections of higher scores
        boxes = np.concatenate([others[:number], box]).astype(np.float32)
        scores = np.linspace(1, 0.5, number + 1, dtype=np.float32)
        found = Found(boxes, np.zeros(number + 1, np.int64), scores)
        record = {0: ImageRecord(1, (100, 100), truth, found)}
        measured = detection_metrics(record, CATEGORIES[:1], masks=False)
        assert measured.metrics["box_ar_100"] == expected == judged(record, CATEGORIES[:1], "box")[8]
        assert measured.metrics["box_ar_10"] == 0.0
        assert measured.most_detections == number + 1


def test_crowd_regions_without_a_mask_cover_their_box() -> None:
    box = np.array([[10.0, 10.0, 50.0, 50.0], [60.0, 10.0, 95.0, 90.0]])
    (mask,) = pasted(np.ones((1, 28, 28), np.float32), box[:1], (100, 100))
    truth = Found(box, np.zeros(2, np.int64), np.ones(2, np.float32), [mask, None], np.array([False, True]))
    record = {3: ImageRecord("a", (100, 100), truth, truth.chosen(np.array([0])))}
    assert detection_metrics(record, CATEGORIES[:1], masks=True).metrics["mask_ap"] == 1.0
    truth.crowd = np.array([True, False])
    with pytest.raises(DataError, match=r"image a has objects without a mask: set task\.masks=false"):
        detection_metrics(record, CATEGORIES[:1], masks=True)


@pytest.mark.parametrize(("what", "value"), [("scores", np.nan), ("boxes", np.inf)])
def test_a_detection_that_is_not_finite_names_its_image(what: str, value: float, every: dict[int, ImageRecord]) -> None:
    values = getattr(every[0].found, what).copy()
    values[-1] = value
    broken = {**every, 0: replace(every[0], found=replace(every[0].found, **{what: values}))}
    with pytest.raises(RunError, match=rf"image {every[0].image_id}: the {what[:3]}.* not finite; the weights are"):
        evaluated(broken)


def test_an_unknown_class_names_its_image(every: dict[int, ImageRecord]) -> None:
    with pytest.raises(DataError, match=r"image \d+ has an object of class \d, but the classes are 0 to 1: evaluate"):
        detection_metrics(every, CATEGORIES[:2], masks=False)
