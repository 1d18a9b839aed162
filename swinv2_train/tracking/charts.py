"""Charts for papers and logs, drawn with matplotlib: curves, confusion matrices, reliability diagrams.

Figures are plain objects on the Agg canvas: no window, no pyplot, no state between charts. The colors are those of
Okabe and Ito (2008), which are distinguishable for all types of color vision; every curve also has its own marker.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from swinv2_train.text import as_label
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DOTS_PER_INCH = 200
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # embeds TrueType fonts, as publishers require
    "ps.fonttype": 42,
}
_NAMED_CLASSES = 40
"""Maximum number of classes whose names a confusion matrix shows; up to half of it, also the numbers in the cells."""
_MOST_CELLS = 250
_LONGEST_NAME = 18


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    """Non-finite values leave a gap."""
    dashed: bool = False
    """Dashed, thin, and without markers: for a curve that accompanies another."""


class Chart:
    """A drawn figure."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    @property
    def image(self) -> Image.Image:
        """Return the chart as an RGB image."""
        with Image.open(io.BytesIO(self.encoded("png"))) as picture:
            return picture.convert("RGB")

    def encoded(self, kind: str) -> bytes:
        """Return the chart as the bytes of a file; `kind` is png or pdf, the latter with vectors."""
        import matplotlib

        stream = io.BytesIO()
        # Without a date, the same chart produces the same bytes.
        metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(stream, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
        return stream.getvalue()

    def save(self, path: Path) -> list[Path]:
        """Write the figure as PNG to `path` and as PDF next to it; return both paths.

        Raises:
            OSError: if they cannot be written.
        """
        written = [path.with_suffix(".png"), path.with_suffix(".pdf")]
        for target in written:
            write_bytes(target, self.encoded(target.suffix[1:]))
        return written


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_y: bool = False,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    separators: Sequence[float] = (),
    size: tuple[float, float] = (5.2, 3.4),
) -> Chart:
    """Plot curves over one axis.

    Args:
        series: the curves; a legend names them if there are several.
        log_y: a logarithmic y axis; values of 0 and below leave a gap.
        x_ticks: positions and labels of the ticks; None lets matplotlib choose.
        separators: positions of thin vertical lines.
        size: width and height in inches.

    Raises:
        ValueError: if there is no curve, or x and y of one differ in length.
    """
    if not series:
        raise ValueError("a chart needs at least one curve")
    figure, axes = empty_axes(size)
    with house_style():
        for place in separators:
            axes.axvline(place, color="#B0B0B0", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
        for number, one in enumerate(series):
            if len(one.x) != len(one.y):
                raise ValueError(f"{one.name}: {len(one.x)} places for {len(one.y)} values")
            y = np.asarray(one.y, dtype=np.float64)
            y = np.where(np.isfinite(y) & ((y > 0) | (not log_y)), y, np.nan)
            marks = {"linestyle": (0, (4, 2)), "linewidth": 1.0} if one.dashed else {"marker": _pick(MARKERS, number)}
            axes.plot(
                one.x, y, color=_pick(PALETTE, number), label=as_label(one.name), clip_on=False, zorder=3, **marks
            )
        if log_y:
            _logarithmic(axes)
        if x_ticks is not None:
            axes.set_xticks([place for place, _ in x_ticks], [text for _, text in x_ticks])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if title:
            axes.set_title(as_label(title))
        if len(series) > 1:
            axes.legend(loc="best")
    return Chart(figure)


def confusion_chart(matrix: np.ndarray, names: Sequence[str] | None = None) -> Chart:
    """Plot a confusion matrix: true classes down, predicted ones across, as a fraction of each true class.

    With up to 20 classes the cells show percentages, with up to 40 the axes show the names. In larger matrices the
    colors are logarithmic, and above 250 classes a cell is the largest fraction in a square of neighbors, so that rare
    mistakes remain visible.

    Args:
        matrix: (K, K) counts, rows true.
        names: of the classes; their numbers if it is None.

    Raises:
        ValueError: if the matrix is not square, or the number of names differs.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    num_classes = len(matrix)
    if matrix.ndim != 2 or matrix.shape[1] != num_classes or not num_classes:
        raise ValueError(f"a confusion matrix must be square, not {matrix.shape}")
    if names is not None and len(names) != num_classes:
        raise ValueError(f"{len(names)} names for {num_classes} classes")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    side = min(9.0, max(3.6, 1.8 + 0.3 * num_classes))
    figure, axes = empty_axes((side + 0.8, side))
    large = num_classes > _NAMED_CLASSES
    with house_style():
        axes.grid(False)
        shown, scale, colours = shares, Normalize(0.0, 1.0), colormaps["Blues"]
        if large:
            shown = np.ma.masked_equal(_pooled(shares), 0)
            scale = LogNorm(min(float(shares[shares > 0].min(initial=1.0)), 0.5), 1.0)
            colours = ListedColormap(colours(np.linspace(0.25, 1.0, 256)))
        end = len(shown) * -(-num_classes // len(shown)) - 0.5
        extent = (-0.5, end, end, -0.5)
        drawn = axes.imshow(shown, cmap=colours, norm=scale, interpolation="nearest", extent=extent)
        if not large:
            texts = [_short(name) for name in (names or [str(number) for number in range(num_classes)])]
            upright = max(map(len, texts)) <= 3
            axes.set_xticks(range(num_classes), texts, rotation=0 if upright else 90)
            axes.set_yticks(range(num_classes), texts)
            axes.tick_params(length=0)
        if num_classes <= _NAMED_CLASSES // 2:
            _write_cells(axes, shares)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label("fraction of the true class")
        bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    return Chart(figure)


def reliability_chart(bins: np.ndarray, error: float) -> Chart:
    """Plot a reliability diagram: accuracy over confidence, and below it the distribution of confidences.

    Args:
        bins: (N, 3) per equally wide bin of confidence from 0 to 1: samples, sum of confidences, correct samples.
        error: the expected calibration error, in [0, 1], for the title.

    Raises:
        ValueError: if `bins` has another shape.
    """
    if bins.ndim != 2 or bins.shape[1] != 3:
        raise ValueError(f"bins are (N, 3), not {bins.shape}")
    figure, (upper, lower) = _rows((4.0, 4.4), (3, 1))
    count, confidence, correct = bins.T
    full = count > 0
    width = 1 / len(bins)
    centres = (np.arange(len(bins)) + 0.5) * width
    accuracy = np.divide(correct, count, out=np.zeros(len(bins)), where=full)
    mean = np.divide(confidence, count, out=centres.copy(), where=full)
    with house_style():
        upper.bar(centres[full], accuracy[full], 0.92 * width, color=PALETTE[0], label="accuracy", zorder=2)
        upper.plot(mean[full], accuracy[full], "o", color=PALETTE[1], markersize=3.5, label="mean confidence", zorder=4)
        upper.plot([0, 1], [0, 1], color="#404040", linewidth=1.0, linestyle=(0, (4, 2)), label="calibrated", zorder=3)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        upper.legend(loc="upper left", frameon=True, edgecolor="none", framealpha=0.85)
        upper.set_title(f"expected calibration error {100 * error:.1f}%")
        lower.bar(centres, 100 * count / max(count.sum(), 1), 0.92 * width, color="#808080")
        lower.set(xlabel="confidence", ylabel="samples (%)")
    return Chart(figure)


def house_style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def empty_axes(size: tuple[float, float]) -> tuple[Figure, Any]:
    figure, (axes,) = _rows(size, (1,))
    return figure, axes


def _rows(size: tuple[float, float], heights: tuple[int, ...]) -> tuple[Figure, Any]:
    """Return a figure with axes one below the other that share their x axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, axes[:, 0]


def _logarithmic(axes: Any) -> None:
    """Set a logarithmic y axis, with plain numbers if its range is small."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.grid(True, which="minor", axis="y", color="#F3F3F3", linewidth=0.5)
    low, high = axes.get_ylim()
    if high / low > 300:
        return
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _write_cells(axes: Any, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
        share = shares[row, column]
        ink = "white" if share > 0.55 else "#202020"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=7.5)


def _pooled(shares: np.ndarray) -> np.ndarray:
    """Return the largest value of each square of neighbors, so that at most `_MOST_CELLS` remain in each direction."""
    side = -(-len(shares) // _MOST_CELLS)
    starts = np.arange(0, len(shares), side)
    return np.maximum.reduceat(np.maximum.reduceat(shares, starts, axis=0), starts, axis=1)


def _pick(choices: Sequence[str], number: int) -> str:
    return choices[number % len(choices)]


def _short(name: str) -> str:
    return as_label(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")
