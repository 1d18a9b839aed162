"""Report of a detector: tables, files that the tools of COCO read, and charts."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from swinv2_train.tasks.detection.curves import class_chart, objects_chart
from swinv2_train.tasks.detection.metrics import Curves, detection_metrics
from swinv2_train.tasks.detection.records import Category
from swinv2_train.tasks.detection.report import DetectionReport
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.report import percent_text
from tests.tasks.detection.synthetic import CATEGORIES, records, truth_json


@pytest.fixture(scope="module")
def report() -> DetectionReport:
    every = records()
    scores = detection_metrics(every, CATEGORIES, masks=True)
    return DetectionReport(Measured({}, every), scores.metrics, CATEGORIES, scores)


def test_a_line_per_class(report: DetectionReport) -> None:
    classes, operation = report.tables()
    assert [row[0] for row in classes] == ["classes", "kite", "buoy", "sail", "gull", "crab"]
    assert classes[0][1:5] == ("box AP", "box AP50", "box AP75", "box recall")
    assert classes[5][1:10] == ("",) * 8 + ("0",)  # no object, but detections
    assert classes[1][1] == percent_text(report.scores.curves["box"].average_precision()[0])
    assert {row[10] for row in classes[1:5]} <= {"kite", "buoy", "sail", "gull", "crab", ""}
    assert operation[1][3] == percent_text(report.scores.operation.f1)
    rows = list(csv.DictReader(io.StringIO(report.files()["per_class.csv"])))
    assert [(row["class"], row["category_id"]) for row in rows][:2] == [("0", "90"), ("1", "1")]
    assert sum(int(row["objects"]) for row in rows) == report.scores.truths.sum()
    means = {name: np.mean([float(row[name]) for row in rows if row[name]]) for name in ("box_ap", "mask_ar_100")}
    assert all(means[name] == pytest.approx(report.measured[name], abs=1e-6) for name in means)
    details = report.details()
    assert details["objects"]["single"] == report.scores.truths.sum()
    assert details["detections"]["counted_of_a_class_in_an_image"] == 100
    json.dumps(details, allow_nan=False)


def test_the_tools_of_coco_read_the_results(report: DetectionReport, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    (tmp_path / "truth.json").write_text(json.dumps(truth_json(report.records, CATEGORIES)))
    for kind, name in (("bbox", "detections.json"), ("segm", "detections_masks.json")):
        (tmp_path / name).write_text(report.files()[name])
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(tmp_path / "truth.json"))
            evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / name)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        start = {"bbox": "box_", "segm": "mask_"}[kind]
        ours = [value for key, value in report.measured.items() if key.startswith(start)]
        assert ours == pytest.approx(evaluation.stats.tolist(), rel=0, abs=1e-15)


def test_many_classes_show_the_worst() -> None:
    every = records(60)
    table = [*CATEGORIES, *(Category(100 + number, f"fish {number}") for number in range(40))]
    rng = np.random.default_rng(0)
    for record in every.values():
        record.truth.classes[::2] = rng.integers(0, 45, len(record.truth.classes[::2]))
    scores = detection_metrics(every, table, masks=False)
    report = DetectionReport(Measured({}, every), scores.metrics, table, scores)
    rows = report.tables()[0]
    assert rows[0][0] == "worst classes"
    assert len(rows) == 11
    values = [float(row[1].rstrip(" %")) for row in rows[1:]]
    assert values == sorted(values)
    chart = report.charts()["box_precision_recall_classes.png"].figure.axes[0]
    assert len(chart.get_lines()) == 7
    order = {category.name: number for number, category in enumerate(table)}
    shown = [order[text.rpartition(": AP")[0]] for text in chart.get_legend_handles_labels()[1][:-1]]
    assert shown == sorted(shown)
    assert "the worst 6 of " in chart.get_title().replace("\n", " ")


def test_charts_show_the_scores(report: DetectionReport) -> None:
    charts = report.charts()
    assert sorted(charts) == sorted(
        ["confusion.png"]
        + [f"{kind}_precision_recall{what}.png" for kind in ("box", "mask") for what in ("", "_classes")]
    )
    for kind in ("box", "mask"):
        axes = charts[f"{kind}_precision_recall.png"].figure.axes[0]
        _, names = axes.get_legend_handles_labels()
        for name, metric in zip(names, ("ap50", "ap75", "ap"), strict=True):
            assert name.endswith(f": AP {100 * report.measured[f'{kind}_{metric}']:.1f}%")
        lines = axes.get_lines()
        assert lines[0].get_ydata().mean() == pytest.approx(100 * report.measured[f"{kind}_ap50"])
    axes = charts["confusion.png"].figure.axes[0]
    assert axes.get_yticklabels()[-1].get_text() == "(no object)"
    assert axes.get_xticklabels()[-1].get_text() == "(missed)"
    alarms = int(report.scores.confusion[-1].sum())
    assert f"{report.scores.truths.sum():,} objects and {alarms:,} false alarms" in axes.get_title()


def test_charts_of_nothing_are_left_out(report: DetectionReport) -> None:
    unknown = Curves(np.full((10, 101, 2), np.nan), np.full((10, 2), np.nan))
    assert class_chart(unknown, "box", ["a", "b"]) is None
    assert objects_chart(replace(report.scores, confusion=None), ["a"] * 5) is None
    none = detection_metrics({}, CATEGORIES, masks=False)
    empty = DetectionReport(Measured(), none.metrics, CATEGORIES, none)
    assert empty.tables() == []
    assert list(empty.charts()) == ["box_precision_recall.png"]
    assert json.loads(empty.files()["detections.json"]) == []
