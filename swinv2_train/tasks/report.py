"""Output of swinv2-eval in addition to the metrics; a task overrides what it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swinv2_train.tasks.measured import Measured

if TYPE_CHECKING:
    from swinv2_train.tracking.charts import Chart


class Report:
    """The evaluation of a task, on the main rank.

    Args:
        found: what all ranks measured together.
        metrics: that follow from it.
        class_names: a name for every class; None without any.
    """

    def __init__(self, found: Measured, metrics: Mapping[str, float], class_names: Sequence[str] | None = None) -> None:
        self.sums, self.records = found.sums, found.records
        self.measured = metrics
        self.class_names = class_names

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Further tables for the terminal; the first row of each holds the titles."""
        return []

    def files(self) -> dict[str, str]:
        """Text files by name."""
        return {}

    def charts(self) -> dict[str, Chart]:
        """Charts by the name of their image."""
        return {}

    def details(self) -> dict[str, Any]:
        """Further entries of results.json."""
        return {}
