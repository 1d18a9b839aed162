"""Metrics of a segmenter equal those that scikit-learn computes from the same pixels, whoever counts which images."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from swinv2_train.data.errors import DataError
from swinv2_train.tasks.measured import Measured, Sums, add_sums
from swinv2_train.tasks.metrics import MOST_CONFUSION_CLASSES
from swinv2_train.tasks.report import percent_text
from swinv2_train.tasks.segmentation.metrics import (
    ClassScores,
    PixelCounts,
    segmentation_metrics,
    summed_cross_entropy,
)
from swinv2_train.tasks.segmentation.report import SegmentationReport

IGNORE = 255


def images(num_classes: int, count: int = 5, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Label maps and predictions of different sizes; class 0 is frequent, the last two never true."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        size = rng.integers(5, 20, 2)
        truth = (rng.random(size) ** 3 * (num_classes - 2)).astype(np.uint8)
        predicted = np.where(rng.random(size) < 0.6, truth, rng.integers(0, num_classes - 1, size))
        truth[rng.random(size) < 0.1] = IGNORE
        found.append((torch.from_numpy(truth), torch.from_numpy(predicted)))
    return found


def counted(pairs: list[tuple[torch.Tensor, torch.Tensor]], num_classes: int) -> Sums:
    counts = PixelCounts(num_classes, IGNORE, torch.device("cpu"))
    for truth, predicted in pairs:
        counts.add(truth, predicted)
    return counts.sums() | {"total": 0.0, "samples": float(len(pairs))}


def pixels(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = (torch.cat([pair[place].flatten().long() for pair in pairs]).numpy() for place in (0, 1))
    return truth[truth != IGNORE], predicted[truth != IGNORE]


def test_the_numbers_are_those_of_scikit_learn() -> None:
    from sklearn import metrics  # two seconds of imports that only this test needs

    pairs = images(7)
    sums, (truth, predicted) = counted(pairs, 7), pixels(pairs)
    assert truth.max() < 5 <= predicted.max() == 5  # one class is only predicted, one is nowhere
    np.testing.assert_array_equal(sums["confusion"], metrics.confusion_matrix(truth, predicted, labels=range(7)))
    assert sums["ignored"] == sum(int((pair[0] == IGNORE).sum()) for pair in pairs) > 0
    found = segmentation_metrics(sums)
    labels = range(6)
    assert found["miou"] == pytest.approx(metrics.jaccard_score(truth, predicted, labels=labels, average="macro"))
    assert found["dice"] == pytest.approx(metrics.f1_score(truth, predicted, labels=labels, average="macro"))
    recalls = metrics.recall_score(truth, predicted, labels=range(5), average="macro")
    assert found["mean_accuracy"] == pytest.approx(recalls)
    assert found["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    scores = ClassScores.of(sums)
    np.testing.assert_allclose(scores.iou[:6], metrics.jaccard_score(truth, predicted, labels=labels, average=None))
    assert np.isnan(scores.iou[6])
    assert np.isnan(scores.accuracy[5])


def test_it_does_not_matter_who_counts_what() -> None:
    pairs = images(7)
    whole: dict[str, Any] = {}
    for part in (pairs[3:], pairs[:1], pairs[1:3]):
        whole = add_sums(whole, counted(part, 7))
    once = counted(pairs, 7)
    assert whole.keys() == once.keys()
    for name in once:
        np.testing.assert_array_equal(whole[name], once[name])


def test_with_very_many_classes_the_same_metrics_come_without_a_matrix() -> None:
    pairs, most = images(7), MOST_CONFUSION_CLASSES
    dense, plain = counted(pairs, most), counted(pairs, most + 1)
    assert "confusion" in dense
    assert "confusion" not in plain
    assert segmentation_metrics(dense) | {"loss": 0} == segmentation_metrics(plain) | {"loss": 0}


def test_a_value_beyond_the_classes_is_an_error() -> None:
    with pytest.raises(DataError, match="value 7, but the classes are 0 to 6, and pixels that do not count have 255"):
        counted([(torch.tensor([[0, 7]]), torch.tensor([[0, 0]]))], 7)


def test_without_a_labeled_pixel_nothing_is_known() -> None:
    found = segmentation_metrics(counted([(torch.full((2, 2), IGNORE), torch.zeros(2, 2))], 3) | {"samples": 0.0})
    assert found.pop("samples") == 0
    assert len(found) == 5
    assert all(np.isnan(value) for value in found.values())


def test_the_cross_entropy_is_torchs() -> None:
    scores = torch.randn(7, 6, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(54).reshape(6, 9) % 8
    labels[labels == 7] = IGNORE
    expected = F.cross_entropy(scores[None].double(), labels[None], ignore_index=IGNORE, reduction="sum")
    assert float(summed_cross_entropy(scores, labels.byte(), IGNORE)) == pytest.approx(float(expected), rel=1e-6)


NAMES = ["sky, clear", "sea", "sand", "rock", "tree", "buoy", "kite"]


def report(num_classes: int, names: list[str] | None) -> SegmentationReport:
    sums = counted(images(7), num_classes)
    return SegmentationReport(Measured(sums), segmentation_metrics(sums), names)


def test_the_report_has_a_line_per_class() -> None:
    shown = report(7, NAMES)
    scores = ClassScores.of(shown.sums)
    (rows,) = shown.tables()
    assert [row[0] for row in rows] == ["classes", *NAMES[:6]]  # without the kite, which is nowhere
    assert rows[1][1] == percent_text(scores.iou[0])
    assert percent_text(0.5664) == "56.6%"
    assert rows[6][1:5] == (percent_text(0.0), "", percent_text(0.0), percent_text(0.0))
    lines = list(csv.DictReader(io.StringIO(shown.files()["per_class.csv"])))
    assert [line["name"] for line in lines] == NAMES
    row = np.asarray(shown.sums["confusion"])[0].copy()
    row[0] = 0
    assert (lines[0]["most_confused_with"], lines[0]["most_confused_pixels"]) == (str(row.argmax()), f"{row.max():.0f}")
    assert float(lines[1]["iou"]) == pytest.approx(scores.iou[1], abs=1e-6)
    assert (lines[6]["iou"], lines[6]["accuracy"], lines[6]["dice"]) == ("", "", "")
    counts = shown.details()["pixels"]
    assert counts == {"counted": int(scores.pixels.sum()), "ignored": int(shown.sums["ignored"])}
    chart = shown.charts()["confusion.png"].figure.axes[0]
    assert chart.get_title() == f"{counts['counted']:,} pixels"


def test_a_report_of_many_classes_shows_the_worst() -> None:
    sums = counted(images(60, 12), 60)
    (rows,) = SegmentationReport(Measured(sums), segmentation_metrics(sums)).tables()
    assert rows[0][0] == "worst classes"
    assert len(rows) == 11
    ious = [float(row[1].removesuffix("%")) for row in rows[1:]]
    assert ious == sorted(ious)
    assert rows[1][0].startswith("class ")
