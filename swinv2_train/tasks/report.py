"""Output of swinv2-eval in addition to the metrics; a task overrides the parts it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_train.tasks.measured import Measured

if TYPE_CHECKING:
    from swinv2_train.tracking.charts import Chart


def percent_text(value: float) -> str:
    """Return a fraction in percent for display; nothing for nan."""
    return "" if np.isnan(value) else f"{value:.1%}"


class Report:
    """Report of a task's evaluation, on the main rank.

    Args:
        found: combined results of all ranks.
        metrics: metrics computed from them.
        class_names: a name for every class; None without names.
    """

    def __init__(self, found: Measured, metrics: Mapping[str, float], class_names: Sequence[str] | None = None) -> None:
        self.sums, self.records = found.sums, found.records
        self.measured = metrics
        self.class_names = class_names

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Return additional tables for the terminal; the first row of each contains the titles."""
        return []

    def files(self) -> dict[str, str]:
        """Return text files by name."""
        return {}

    def charts(self) -> dict[str, Chart]:
        """Return charts by the name of their image."""
        return {}

    def details(self) -> dict[str, Any]:
        """Return additional entries of results.json."""
        return {}


class ClassesReport(Report):
    """Base of the reports of tasks with classes, whose sums may have `confusion` (K, K), rows true."""

    def name(self, number: int) -> str:
        """Return the name of a class, for display."""
        return self.class_names[number] if self.class_names else f"class {number}"

    def most_confused(self, number: int) -> int | None:
        """Return the most frequent wrong prediction for a class; None if there is none, or no matrix."""
        if "confusion" not in self.sums:
            return None
        row = np.asarray(self.sums["confusion"])[number].copy()
        row[number] = 0
        return int(row.argmax()) if row.any() else None

    def confusion_cells(self, number: int) -> list[str]:
        """Return number and name of the class that a class is most often taken for, and how many times."""
        other = self.most_confused(number)
        if other is None:
            return ["", "", ""]
        name = self.class_names[other] if self.class_names else ""
        return [str(other), name, f"{np.asarray(self.sums['confusion'])[number, other]:.0f}"]
