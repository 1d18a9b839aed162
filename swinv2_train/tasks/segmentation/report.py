"""Report of a segmentation: a line per class, and the confusion of the pixels."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_train.tasks.report import ClassesReport, percent_text
from swinv2_train.tasks.segmentation.metrics import ClassScores

if TYPE_CHECKING:
    from swinv2_train.tracking.charts import Chart

_MOST_LINES = 30
_WORST = 10


class SegmentationReport(ClassesReport):
    """See `Report`."""

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Return the classes in their order, with many only those with the lowest IoU."""
        scores = ClassScores.of(self.sums)
        present = np.flatnonzero(scores.pixels + scores.predicted)
        title = "classes"
        if len(present) > _MOST_LINES:
            title = "worst classes"
            present = present[np.lexsort((present, -scores.pixels[present], scores.iou[present]))][:_WORST]
        rows = [(title, "IoU", "accuracy", "Dice", "share of the pixels", "taken for")]
        total = scores.pixels.sum()
        for number in present.tolist():
            other = self.most_confused(number)
            shares = (scores.iou, scores.accuracy, scores.dice, scores.pixels / max(total, 1))
            cells = [percent_text(values[number]) for values in shares]
            rows.append((self.name(number), *cells, "" if other is None else self.name(other)))
        return [rows] if len(rows) > 1 else []

    def files(self) -> dict[str, str]:
        """`per_class.csv`."""
        return {"per_class.csv": self.per_class_csv()}

    def charts(self) -> dict[str, Chart]:
        """Return the confusion matrix."""
        from swinv2_train.tracking.confusion import confusion_chart

        if "confusion" not in self.sums:
            return {}
        matrix = np.asarray(self.sums["confusion"])
        return {"confusion.png": confusion_chart(matrix, self.class_names, unit="pixels")}

    def details(self) -> dict[str, Any]:
        """Return the pixels that were counted and those that were ignored."""
        counted = int(ClassScores.of(self.sums).pixels.sum())
        return {"pixels": {"counted": counted, "ignored": int(self.sums["ignored"])}}

    def per_class_csv(self) -> str:
        """Return a line per class: name, true, predicted, and correct pixels, IoU, accuracy, and Dice, and the class
        that it is most often taken for. A score is empty if the class has no pixels that it is a fraction of."""
        scores = ClassScores.of(self.sums)
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        confused = [f"most_confused_{what}" for what in ("with", "name", "pixels")]
        writer.writerow(["class", "name", "pixels", "predicted", "correct", "iou", "accuracy", "dice", *confused])
        for number in range(len(scores.pixels)):
            counts = [f"{values[number]:.0f}" for values in (scores.pixels, scores.predicted, scores.correct)]
            shares = [_share(values[number]) for values in (scores.iou, scores.accuracy, scores.dice)]
            name = self.class_names[number] if self.class_names else ""
            writer.writerow([number, name, *counts, *shares, *self.confusion_cells(number)])
        return stream.getvalue()


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"
