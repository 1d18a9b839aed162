"""Chart of a confusion matrix, with the full names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_train.lettering import font
from swinv2_train.text import as_label, printable
from swinv2_train.tracking.charts import POINTS, Chart, house_style

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

_WITH_NUMBERS, _PLAIN_COLORS, _NAMED = 20, 40, 100
"""Maximum number of classes with percentages in the cells, with a linear color scale, and with names on the axes."""
_MOST_CELLS = 250
_LEAST_SIDE, _LARGE_SIDE = 2.2, 7.5
"""Side of the smallest matrix, and of those without names, in inches."""
_LONGEST_NAME = 120
"""A longer name would leave no room for the matrix; the number of the class replaces it."""


def confusion_chart(
    matrix: np.ndarray,
    names: Sequence[str] | None = None,
    *,
    unit: str = "images",
    predicted: Sequence[str] | None = None,
    title: str | None = None,
) -> Chart:
    """Plot a confusion matrix: true classes down, predicted ones across, in percent of the images of each true class.

    With up to 20 classes the cells show the percentages. With up to 100, the axes show the full names, and the number
    of images of each class; in larger matrices, the numbers of the classes. Above 40 classes the colors are
    logarithmic, and above 250 a cell is the largest percentage in a square of neighbors, so that rare mistakes remain
    visible.

    Args:
        matrix: (K, K) counts, rows true.
        names: of the classes; their numbers if it is None.
        unit: what is counted, in the plural.
        predicted: names of the predicted classes, if they differ from those of the true ones.
        title: None: the number of units.

    Raises:
        ValueError: if the matrix is not square, or the number of names differs.
    """
    num_classes = len(matrix)
    if matrix.ndim != 2 or matrix.shape[1] != num_classes or not num_classes:
        raise ValueError(f"a confusion matrix must be square, not {matrix.shape}")
    for given in (names, predicted):
        if given is not None and len(given) != num_classes:
            raise ValueError(f"{len(given)} names for {num_classes} classes")
    totals = matrix.sum(axis=1)
    percent = np.divide(100.0 * matrix, totals[:, None], out=np.zeros(matrix.shape), where=totals[:, None] > 0)
    texts = _texts(num_classes, names)
    across = texts if predicted is None else _texts(num_classes, predicted)
    named = num_classes <= _NAMED
    with house_style():
        figure, axes, bar_axes = _frame(
            num_classes, (texts, across) if named else (["000"], ["000"]), f"{totals.max():,.0f}"
        )
        axes.grid(False)
        drawn = _draw_cells(axes, percent)
        if named:
            _name_cells(axes, texts, across, totals, unit)
        if num_classes <= _WITH_NUMBERS:
            _write_cells(axes, percent)
        axes.set_xlabel("predicted class" if named else "predicted class (number, as in per_class.csv)")
        axes.set_ylabel("true class" if named else "true class (number, as in per_class.csv)")
        axes.set_title(f"{totals.sum():,.0f} {unit}" if title is None else title)
        bar = figure.colorbar(drawn, cax=bar_axes, format="%g")
        bar.set_label(f"% of the {unit} of the true class")
        bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    return Chart(figure)


def _texts(num_classes: int, names: Sequence[str] | None) -> list[str]:
    """Return the labels of the classes: their names in full, or their numbers."""
    if names is None:
        return [str(number) for number in range(num_classes)]
    plain = [printable(name) for name in names]
    return [name if len(name) <= _LONGEST_NAME else f"class {number}" for number, name in enumerate(plain)]


def _cell(num_classes: int) -> float:
    """Return the side of a cell in inches."""
    return 0.3 if num_classes <= _WITH_NUMBERS else 0.2 if num_classes <= _PLAIN_COLORS else 0.13


def _points(num_classes: int) -> float:
    """Return the size of the names, so that they fit into a row."""
    return min(9.0, 0.72 * POINTS * _cell(num_classes))


def _frame(num_classes: int, texts: tuple[Sequence[str], Sequence[str]], count: str) -> tuple[Figure, Any, Any]:
    """Return a figure with axes for the matrix and for its color bar, and room for the labels around them.

    The room is computed, because the automatic layout takes seconds for a hundred long names, and cuts some.

    Args:
        texts: labels of the true and of the predicted classes.
        count: the longest number of images.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def inches(text: str) -> float:
        return font(100).getlength(text) / 100 * _points(num_classes) / POINTS

    labels, lower = (1.03 * max(map(inches, names)) for names in texts)  # renderers round the width of every letter
    side = max(_LEAST_SIDE, num_classes * _cell(num_classes)) if num_classes <= _NAMED else _LARGE_SIDE
    left, below = labels + 0.5, (lower if _rotated(texts[1]) else 0.2) + 0.5
    right = inches(count) + 0.6
    width, height = left + side + right + 1.2, below + side + 0.45
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / width, below / height, side / width, side / height))
    bar = figure.add_axes(((left + side + right) / width, below / height, 0.2 / width, side / height))
    return figure, axes, bar


def _rotated(texts: Sequence[str]) -> bool:
    return max(map(len, texts)) > 3


def _draw_cells(axes: Any, percent: np.ndarray) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    shown, scale, colors = percent, Normalize(0.0, 100.0), colormaps["Blues"]
    if len(percent) > _PLAIN_COLORS:
        shown = np.ma.masked_equal(_pooled(percent), 0)
        scale = LogNorm(min(float(percent[percent > 0].min(initial=100.0)), 50.0), 100.0)
        colors = ListedColormap(colors(np.linspace(0.25, 1.0, 256)))
    end = len(shown) * -(-len(percent) // len(shown)) - 0.5
    return axes.imshow(shown, cmap=colors, norm=scale, interpolation="nearest", extent=(-0.5, end, end, -0.5))


def _name_cells(axes: Any, texts: Sequence[str], across: Sequence[str], totals: np.ndarray, unit: str) -> None:
    """Write the names of the classes left and below, and the number of images or pixels of each row on the right."""
    places, points = range(len(texts)), _points(len(texts))
    axes.set_xticks(places, [as_label(text) for text in across], rotation=90 if _rotated(across) else 0)
    axes.set_yticks(places, [as_label(text) for text in texts])
    axes.tick_params(length=0, labelsize=points)
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(places, [f"{total:,.0f}" for total in totals])
    counts.tick_params(length=0, labelsize=points)
    counts.set_ylabel(f"{unit} of the true class")
    counts.spines["right"].set_visible(False)


def _write_cells(axes: Any, percent: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(percent), strict=True):
        value = percent[row, column]
        ink = "white" if value > 55 else "#202020"
        text = f"{value:.0f}" if value >= 0.5 else "<1"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7.5)


def _pooled(percent: np.ndarray) -> np.ndarray:
    """Return the largest value of each square of neighbors, so that at most `_MOST_CELLS` remain in each direction."""
    side = -(-len(percent) // _MOST_CELLS)
    starts = np.arange(0, len(percent), side)
    return np.maximum.reduceat(np.maximum.reduceat(percent, starts, axis=0), starts, axis=1)
