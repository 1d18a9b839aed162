"""Report of a detector: scores of every class, curves, the confusion of the classes, and results as COCO has them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_train.tasks.detection.metrics import BOX, COUNTED, MASK, DetectionScores, results_json
from swinv2_train.tasks.detection.records import Category
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.report import ClassesReport, percent_text

if TYPE_CHECKING:
    from swinv2_train.tracking.charts import Chart

_MOST_LINES = 30
_WORST = 10
_RESULTS = {BOX: "detections.json", MASK: "detections_masks.json"}
_COLUMNS = ("ap", "ap50", "ap75", "ar_100")


class DetectionReport(ClassesReport):
    """See `Report`.

    Args:
        categories: the classes by number.
        scores: those of the records.
    """

    def __init__(
        self,
        found: Measured,
        metrics: Mapping[str, float],
        categories: Sequence[Category],
        scores: DetectionScores,
    ) -> None:
        super().__init__(found, metrics, [category.name for category in categories])
        self.categories, self.scores = categories, scores
        if scores.confusion is not None:
            self.sums = {**found.sums, "confusion": scores.confusion[:-1, :-1]}
        self.columns = {
            kind: (
                curves.average_precision(),
                curves.average_precision(0.5),
                curves.average_precision(0.75),
                curves.average_recall,
            )
            for kind, curves in scores.curves.items()
        }

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Return the classes in their order, with many only those with the lowest AP, and the best threshold."""
        present = np.flatnonzero(self.scores.truths + self.scores.detections)
        title = "classes"
        if len(present) > _MOST_LINES:
            title = "worst classes"
            first = np.nan_to_num(self.columns[BOX][0], nan=2.0)
            present = present[np.lexsort((present, -self.scores.truths[present], first[present]))][:_WORST]
        heads = [f"{kind} {name}" for kind in self.columns for name in ("AP", "AP50", "AP75", "recall")]
        rows = [(title, *heads, "objects", "taken for")]
        for number in present.tolist():
            other = self.most_confused(number)
            cells = [percent_text(values[number]) for columns in self.columns.values() for values in columns]
            rows.append(
                (
                    self.name(number),
                    *cells,
                    f"{self.scores.truths[number]:,}",
                    "" if other is None else self.name(other),
                )
            )
        best = self.scores.operation
        operation = [
            ("score threshold of the highest F1", "precision", "recall", "F1"),
            (f"{best.threshold:.3f}", *(percent_text(value) for value in (best.precision, best.recall, best.f1))),
        ]
        return [rows, operation] if len(rows) > 1 else []

    def files(self) -> dict[str, str]:
        """`per_class.csv`, and the detections as JSON: boxes, and separately masks."""
        results = {_RESULTS[kind]: self._results(kind) for kind in self.scores.curves}
        return {"per_class.csv": self.per_class_csv(), **results}

    def charts(self) -> dict[str, Chart]:
        """Return precision over recall, of all classes and of single ones, and the confusion matrix."""
        from swinv2_train.tasks.detection.curves import class_chart, iou_chart, objects_chart

        names = [category.name for category in self.categories]
        charts: dict[str, Chart | None] = {"confusion.png": objects_chart(self.scores, names)}
        for kind, curves in self.scores.curves.items():
            charts[f"{kind}_precision_recall.png"] = iou_chart(curves, kind)
            charts[f"{kind}_precision_recall_classes.png"] = class_chart(curves, kind, names)
        return {name: chart for name, chart in charts.items() if chart is not None}

    def details(self) -> dict[str, Any]:
        """Return what was counted, and the best threshold.

        COCO counts 100 detections of a class in an image: `ar_100` is the recall of at most as many as the detector
        returned.
        """
        best = self.scores.operation
        return {
            "objects": {"single": int(self.scores.truths.sum()), "crowd_regions": self.scores.crowd},
            "detections": {
                "all": int(self.scores.detections.sum()),
                "most_in_an_image": self.scores.most_detections,
                "counted_of_a_class_in_an_image": COUNTED,
            },
            "highest_f1": {
                "score_threshold": best.threshold,
                "precision": best.precision,
                "recall": best.recall,
                "f1": best.f1,
            },
        }

    def per_class_csv(self) -> str:
        """Return a line per class: name, original id, objects, detections, average precision and recall, and the class
        that its objects are most often taken for. A score is empty if the class has no objects."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        columns = [f"{kind}_{name}" for kind in self.columns for name in _COLUMNS]
        confused = [f"most_confused_{what}" for what in ("with", "name", "objects")]
        writer.writerow(["class", "name", "category_id", "objects", "detections", *columns, *confused])
        for number, category in enumerate(self.categories):
            cells = [
                "" if np.isnan(values[number]) else f"{values[number]:.6f}"
                for group in self.columns.values()
                for values in group
            ]
            counts = (self.scores.truths[number], self.scores.detections[number])
            writer.writerow([number, category.name, category.id, *counts, *cells, *self.confusion_cells(number)])
        return stream.getvalue()

    def _results(self, kind: str) -> str:
        entries = results_json(self.records, self.categories, kind)
        return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"
