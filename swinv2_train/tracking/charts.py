"""Charts for papers and logs, drawn with matplotlib: curves and reliability diagrams.

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

from swinv2_train.lettering import font, wrapped
from swinv2_train.text import as_label
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DOTS_PER_INCH = 200
POINTS = 72
"""Points per inch, the unit of font sizes."""
_LEGEND_SIZE = 9
_WIDEST_INSIDE = 150
"""Widest name of a legend inside the axes, in points."""
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
    "legend.fontsize": _LEGEND_SIZE,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # embeds TrueType fonts, as publishers require
    "ps.fonttype": 42,
}


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    """Non-finite values leave a gap."""
    dashed: bool = False
    """Dashed, thin, and without markers: for a curve that accompanies another."""
    every: int = 1
    """One marker for this number of points."""
    mark: tuple[float, str] | None = None
    """Position of a vertical line that belongs to the curve, and its name for the legend."""


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
        series: the curves; a legend names them if there are several, and their marks.
        title: is wrapped to the width of the figure.
        log_y: a logarithmic y axis; values of 0 and below leave a gap.
        x_ticks: positions and labels of the ticks; None lets matplotlib choose.
        separators: positions of thin vertical lines.
        size: width and height in inches; long names in the legend add height.

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
            marks: dict[str, Any] = {"marker": _pick(MARKERS, number), "markevery": one.every}
            if one.dashed:
                marks = {"linestyle": (0, (4, 2)), "linewidth": 1.0}
            axes.plot(
                one.x, y, color=_pick(PALETTE, number), label=as_label(one.name), clip_on=False, zorder=3, **marks
            )
        if log_y:
            _logarithmic(axes)
        if x_ticks is not None:
            axes.set_xticks([place for place, _ in x_ticks], [text for _, text in x_ticks])
        _draw_marks(axes, series)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if title:
            axes.set_title("\n".join(map(as_label, wrapped(title, font(10), 0.8 * size[0] * POINTS))))
        if len(series) > 1 or series[0].mark is not None:
            _add_legend(figure, axes)
    return Chart(figure)


def _draw_marks(axes: Any, series: Sequence[Series]) -> None:
    """Draw the vertical line of each mark, in the color of its curve, or in gray if several curves have it."""
    places: dict[tuple[float, str], list[str]] = {}
    for number, one in enumerate(series):
        if one.mark is not None:
            places.setdefault(one.mark, []).append(_pick(PALETTE, number))
    for (place, text), colors in places.items():
        color = colors[0] if len(colors) == 1 < len(series) else "#606060"
        axes.axvline(place, color=color, linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=1, label=as_label(text))


def _add_legend(figure: Figure, axes: Any) -> None:
    """Add a legend: inside the axes, or below them if its names are long."""
    handles, labels = axes.get_legend_handles_labels()
    names, letters = [label.replace(r"\$", "$") for label in labels], font(_LEGEND_SIZE)
    if max(map(letters.getlength, names)) <= _WIDEST_INSIDE:
        axes.legend(loc="best")
        return
    width, height = figure.get_size_inches()
    below = [[as_label(line) for line in wrapped(name, letters, (width - 0.8) * POINTS)] for name in names]
    figure.set_size_inches(width, height + 0.2 * sum(map(len, below)) + 0.1)
    figure.legend(handles, ["\n".join(lines) for lines in below], loc="outside lower left")


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


def _pick(choices: Sequence[str], number: int) -> str:
    return choices[number % len(choices)]
