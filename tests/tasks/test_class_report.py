"""The files of a classification's report."""

from __future__ import annotations

import csv

import numpy as np

from swinv2_train.tasks.class_report import ClassReport
from swinv2_train.tasks.measured import Measured

CONFUSION = np.array([[8.0, 0.0, 2.0], [1.0, 3.0, 4.0], [0.0, 0.0, 5.0]])


def rows(names: list[str] | None) -> list[dict[str, str]]:
    sums = {
        "class_samples": CONFUSION.sum(axis=1),
        "class_correct": CONFUSION.diagonal(),
        "correct_1": np.array(16.0),
        "confusion": CONFUSION,
    }
    text = ClassReport(Measured(sums), {}, names).files()["per_class.csv"]
    return list(csv.DictReader(text.splitlines()))


def test_the_class_that_another_is_taken_for_has_its_name_and_count() -> None:
    named = rows(["a cat, asleep", "dog", "elk"])
    found = [[row[f"most_confused_{column}"] for column in ("with", "name", "samples")] for row in named]
    assert found == [["2", "elk", "2"], ["2", "elk", "4"], ["", "", ""]]
    assert named[0]["name"] == "a cat, asleep"
    assert [float(row["accuracy"]) for row in named] == [0.8, 0.375, 1.0]
    assert [row["most_confused_name"] for row in rows(None)] == ["", "", ""]
