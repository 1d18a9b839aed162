"""Chart of a sweep: a metric over one of the swept values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from swinv2_train.lettering import font
from swinv2_train.text import as_label, printable
from swinv2_train.tracking.charts import MARKERS, PALETTE, POINTS, Chart, empty_axes, house_style

_DECADE = 10.0
_RATES = ("lr", "lr_scale", "min_lr", "warmup_lr")
"""Last parts of the keys of learning rates, whose effect depends on their ratio."""
_SHORT, _LONG = 6, 20
"""Length of category names that are written upright, and slanted; longer ones are written downward."""
_CLOSE = 0.12
"""Part of the axis that the label of a tick needs."""


def sweep_chart(points: Sequence[tuple[str, float]], *, x_label: str, y_label: str) -> Chart:
    """Plot jobs as points and their means as a curve, over numbers or categories.

    Numbers are at their positions; anything else is a category, in the order of first appearance. The axis is
    logarithmic for learning rates, and for other numbers above 0 that span at least a decade.

    Args:
        points: pairs of the swept value, as text, and the metric.
        x_label: the swept key.

    Raises:
        ValueError: if there is no point.
    """
    if not points:
        raise ValueError("a chart needs at least one point")
    places, ticks = _places([text for text, _ in points])
    figure, axes = empty_axes(_size([printable(text) for text in ticks]))
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
            _name_categories(axes, ticks)
        elif min(at) > 0 and (x_label.rpartition(".")[2] in _RATES or max(at) / min(at) >= _DECADE * 0.999):
            _logarithmic(axes, sorted(at))
        axes.set_xlabel(as_label(x_label))
        axes.set_ylabel(as_label(y_label))
        if len(points) > len(at):
            axes.legend(loc="best")
    return Chart(figure)


def _size(ticks: Sequence[str]) -> tuple[float, float]:
    """Return width and height in inches, with room for the names of categories below the axis."""
    width = max(5.2, 1.2 + 0.25 * len(ticks))
    if max(map(len, ticks), default=0) <= _LONG:
        return width, 3.4
    return width, 3.0 + max(map(font(9).getlength, ticks)) / POINTS


def _name_categories(axes: Any, ticks: Sequence[str]) -> None:
    longest = max(map(len, ticks))
    rotation = 0 if longest <= _SHORT else 30 if longest <= _LONG else 90
    axes.set_xticks(
        range(len(ticks)),
        [as_label(text) for text in ticks],
        rotation=rotation,
        ha="right" if rotation == 30 else "center",
    )
    axes.set_xlim(-0.5, len(ticks) - 0.5)


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Set a logarithmic x axis with ticks at the values themselves, without those that would touch the one before."""
    axes.set_xscale("log")
    span = math.log(values[-1] / values[0])
    shown = [values[0]]
    for value in values[1:]:
        if math.log(value / shown[-1]) >= _CLOSE * span:
            shown.append(value)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.minorticks_off()


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
