"""Report of a classification: a line per class, the worst classes, confusion, and calibration."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from swinv2_train.tasks.measured import Sums
from swinv2_train.tasks.metrics import average_precisions
from swinv2_train.tasks.report import ClassesReport

if TYPE_CHECKING:
    from swinv2_train.tracking.charts import Chart

_WORST = 5
_SINGLE_COLUMNS = ("accuracy", "most_confused_with", "most_confused_name", "most_confused_samples")
_SEVERAL_COLUMNS = ("predicted", "average_precision")


class ClassReport(ClassesReport):
    """See `Report`."""

    UNIT: ClassVar[str] = "images"
    """The samples, in the plural."""

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Return the classes with the lowest accuracy, if there are enough classes."""
        if "correct_1" not in self.sums or np.size(self.sums["class_samples"]) <= 2:
            return []
        samples, correct = (np.asarray(self.sums[name]) for name in ("class_samples", "class_correct"))
        rows = [("worst classes", "accuracy", "samples", "taken for")]
        for number in worst_classes(self.sums, _WORST):
            other = self.most_confused(number)
            accuracy = f"{correct[number] / samples[number]:.1%}"
            rows.append(
                (self.name(number), accuracy, f"{samples[number]:,.0f}", "" if other is None else self.name(other))
            )
        return [rows] if len(rows) > 1 else []

    def files(self) -> dict[str, str]:
        """`per_class.csv`."""
        return {"per_class.csv": self.per_class_csv()}

    def charts(self) -> dict[str, Chart]:
        """Return the confusion matrix and the reliability diagram, for one class per image."""
        from swinv2_train.tracking.charts import reliability_chart
        from swinv2_train.tracking.confusion import confusion_chart

        charts = {}
        if "confusion" in self.sums:
            matrix = np.asarray(self.sums["confusion"])
            charts["confusion.png"] = confusion_chart(matrix, self.class_names, unit=self.UNIT)
        if "calibration" in self.sums:
            bins = np.asarray(self.sums["calibration"])
            charts["reliability.png"] = reliability_chart(bins, self.measured["ece"])
        return charts

    def per_class_csv(self) -> str:
        """Return a line per class: its name, its number of samples, and the number of correct ones.

        With one class per image, also the class that it is most often taken for: number, name, and how many times.
        """
        samples, correct = (np.asarray(self.sums[name]) for name in ("class_samples", "class_correct"))
        several = "histograms" in self.sums
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["class", "name", "samples", "correct", *(_SEVERAL_COLUMNS if several else _SINGLE_COLUMNS)])
        precisions = average_precisions(np.asarray(self.sums["histograms"])) if several else ()
        for number, count in enumerate(samples):
            name = self.class_names[number] if self.class_names else ""
            if several:
                predicted = np.asarray(self.sums["class_predicted"])[number]
                more = [f"{predicted:.0f}", f"{precisions[number]:.6f}" if count else ""]
            else:
                more = [f"{correct[number] / count:.6f}" if count else "", *self.confusion_cells(number)]
            writer.writerow([number, name, f"{count:.0f}", f"{correct[number]:.0f}", *more])
        return stream.getvalue()


def worst_classes(sums: Sums, count: int) -> list[int]:
    """Return classes with samples, lowest accuracy first; of equal ones, the one with more samples first."""
    samples, correct = np.asarray(sums["class_samples"]), np.asarray(sums["class_correct"])
    present = np.flatnonzero(samples)
    accuracy = correct[present] / samples[present]
    return present[np.lexsort((present, -samples[present], accuracy))][:count].tolist()
