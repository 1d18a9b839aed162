"""Figures of an evaluation: precision over recall, and the confusion of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swinv2_train.tasks.detection.matching import MATCH_IOU
from swinv2_train.tasks.detection.metrics import IOUS, Curves, DetectionScores
from swinv2_train.tracking.charts import Chart, Series, line_chart
from swinv2_train.tracking.confusion import confusion_chart

MOST_CURVES = 6
"""Classes in a figure: more curves cannot be told apart."""
_RECALL = np.linspace(0, 100, 101)
_SIZE = (5.2, 4.2)
_EVERY = 10


def iou_chart(curves: Curves, kind: str) -> Chart:
    """Plot precision over recall, as the mean over the classes, at the IoUs 0.5 and 0.75 and over all of them.

    Args:
        kind: `box` or `mask`, for the title.
    """
    series = []
    for name, part in (
        ("IoU 0.5", curves.precision[np.isclose(IOUS, 0.5)]),
        ("IoU 0.75", curves.precision[np.isclose(IOUS, 0.75)]),
        ("IoU 0.5 to 0.95", curves.precision),
    ):
        series.append(_series(name, _mean(part, (0, 2))))
    return _chart(series, f"{kind} precision and recall, mean over the classes")


def class_chart(curves: Curves, kind: str, names: Sequence[str]) -> Chart | None:
    """Plot precision over recall at IoU 0.5 of up to six classes with objects, those of the lowest average precision
    in the order of their numbers, and the mean over all classes; return None if fewer than two classes have objects."""
    precision = curves.precision[np.isclose(IOUS, MATCH_IOU)][0]
    scores = precision.mean(axis=0)
    known = np.flatnonzero(~np.isnan(scores))
    if len(known) < 2:
        return None
    # By number, so that a class has the same color in the figures of boxes and of masks.
    worst = np.sort(known[np.lexsort((known, scores[known]))][:MOST_CURVES])
    series = [_series(names[number], precision[:, number]) for number in worst]
    series.append(_series("mean", _mean(precision, (1,)), dashed=True))
    which = "" if len(known) <= MOST_CURVES else f", the worst {MOST_CURVES} of {len(known)} classes"
    return _chart(series, f"{kind} precision and recall at IoU {MATCH_IOU}{which}")


def objects_chart(scores: DetectionScores, names: Sequence[str]) -> Chart | None:
    """Plot the confusion of the classes, with false alarms as the last row and missed objects as the last column."""
    if scores.confusion is None or not scores.confusion.any():
        return None
    objects, alarms = (int(part.sum()) for part in (scores.confusion[:-1], scores.confusion[-1]))
    return confusion_chart(
        scores.confusion,
        [*names, "(no object)"],
        unit="objects",
        predicted=[*names, "(missed)"],
        title=f"{objects:,} objects and {alarms:,} false alarms at score {scores.operation.threshold:.2f}",
    )


def _series(name: str, precision: np.ndarray, *, dashed: bool = False) -> Series:
    return Series(f"{name}: AP {100 * precision.mean():.1f}%", _RECALL, 100 * precision, dashed=dashed, every=_EVERY)


def _mean(precision: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the mean over some axes, the last of which are classes; those without objects do not count."""
    known = precision[..., ~np.isnan(precision).any(axis=tuple(range(precision.ndim - 1)))]
    return known.mean(axis=axes) if known.size else np.full(len(_RECALL), np.nan)


def _chart(series: Sequence[Series], title: str) -> Chart:
    chart = line_chart(series, x_label="recall (%)", y_label="precision (%)", title=title, size=_SIZE)
    chart.figure.axes[0].set(xlim=(0, 100), ylim=(0, 101))
    return chart
