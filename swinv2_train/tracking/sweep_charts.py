"""Chart of a sweep: a metric over one of the swept values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from swinv2_train.text import as_label
from swinv2_train.tracking.charts import MARKERS, PALETTE, Chart, empty_axes, house_style

_DECADE = 10.0
_LONG = 6


def sweep_chart(points: Sequence[tuple[str, float]], *, x_label: str, y_label: str) -> Chart:
    """Plot jobs as points and their means as a curve, over numbers or categories.

    Numbers are at their positions, on a logarithmic axis if they are above 0 and span at least a decade; anything else
    is a category, in the order of first appearance.

    Args:
        points: pairs of the swept value, as text, and the metric.

    Raises:
        ValueError: if there is no point.
    """
    if not points:
        raise ValueError("a chart needs at least one point")
    places, ticks = _places([text for text, _ in points])
    figure, axes = empty_axes((5.2, 3.4))
    with house_style():
        at: dict[float, list[float]] = {}
        for text, value in points:
            at.setdefault(places[text], []).append(value)
        curve = sorted((place, mean(values)) for place, values in at.items())
        axes.plot(
            [places[text] for text, _ in points], [value for _, value in points], MARKERS[0], color=PALETTE[0],
            alpha=0.7, label="job", clip_on=False, zorder=3,
        )  # fmt: skip
        line = {"linestyle": "none", "markersize": 11} if ticks else {"linewidth": 1.2}
        mark = "_" if ticks else MARKERS[1]  # no curve between categories
        axes.plot(
            [place for place, _ in curve], [value for _, value in curve], marker=mark, color=PALETTE[1], label="mean",
            clip_on=False, zorder=4, **line,
        )  # fmt: skip
        if ticks:
            upright = max(len(text) for text in ticks) <= _LONG
            axes.set_xticks(
                range(len(ticks)),
                [as_label(text) for text in ticks],
                rotation=0 if upright else 30,
                ha="center" if upright else "right",
            )
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        elif min(at) > 0 and max(at) / min(at) >= _DECADE * 0.999:
            axes.set_xscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(points) > len(at):
            axes.legend(loc="best")
    return Chart(figure)


def _places(texts: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Return each text's position on the axis, and the tick labels if the texts are categories."""
    numbers = {text: _number(text) for text in texts}
    if all(number is not None for number in numbers.values()):
        return {text: number for text, number in numbers.items() if number is not None}, []
    categories = list(dict.fromkeys(texts))
    return {text: float(place) for place, text in enumerate(categories)}, categories


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
