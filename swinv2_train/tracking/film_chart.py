"""Film strip of a video, and below it curves over the same time axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from swinv2_train.lettering import fitted, font
from swinv2_train.text import as_label
from swinv2_train.tracking.charts import MARKERS, PALETTE, POINTS, Chart, Series, house_style

_WIDTH, _CURVES = 7.0, 1.8
"""Inches of the strip, and height of the curves."""
_LEFT, _RIGHT, _TOP, _GAP, _AXIS = 0.6, 0.2, 0.3, 0.08, 0.5
_STRIP = (0.25, 3.0)
"""Least and largest height of the strip: the frames may be wide or tall."""
_LINE, _HANDLE = 0.2, 0.45
"""Height of a line of the legend, and width of a curve in it."""
_TEXT = 9
_MARKED = 24
"""Maximum number of markers on a curve."""
_DASHES = ("-", "--", "-.", ":")
"""The first classes, as many as there are colors, have solid lines."""


def film_chart(
    strip: Image.Image, seconds: float, series: Sequence[Series], classes: Sequence[int], title: str
) -> Chart:
    """Draw a film strip, and below it curves of fractions.

    Color and dashes of a curve depend on the number of its class, so a class looks the same on the strips of all
    videos. The markers of the curves on one strip differ.

    Args:
        strip: frames of the same width side by side, each of the middle of its part of the time.
        seconds: duration of the video; at 0, the axis has one second.
        series: at least one curve; x in seconds, y from 0 to 1.
        classes: number of the class of each curve.
        title: its end is shown if it is wider than the strip.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = min(max(_WIDTH * strip.height / strip.width, _STRIP[0]), _STRIP[1])
    wide = min(tall * strip.width / strip.height, _WIDTH)  # narrower for a few tall frames
    names, columns = _legend([one.name for one in series], wide)
    lines = math.ceil(len(names) / columns)
    below = _AXIS + lines * _LINE + 0.08
    width, height = _LEFT + wide + _RIGHT, _TOP + tall + _GAP + _CURVES + below
    with house_style():
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        shape = (_LEFT / width, wide / width)
        upper = figure.add_axes((shape[0], (below + _CURVES + _GAP) / height, shape[1], tall / height))
        lower = figure.add_axes((shape[0], below / height, shape[1], _CURVES / height), sharex=upper)
        end = seconds or 1.0
        upper.imshow(np.asarray(strip), extent=(0, end, 0, 1), aspect="auto", interpolation="antialiased")
        upper.set_axis_off()
        upper.set_title(as_label(fitted(title, font(10), wide * POINTS, keep_end=True)))
        for rank, (one, number, name) in enumerate(zip(series, classes, names, strict=True)):
            marks = {"marker": MARKERS[rank % len(MARKERS)], "markevery": math.ceil(len(one.x) / _MARKED)}
            look = {"color": PALETTE[number % len(PALETTE)], "ls": _DASHES[number // len(PALETTE) % len(_DASHES)]}
            lower.plot(one.x, one.y, label=as_label(name), clip_on=False, zorder=3, **look, **marks)
        lower.set(xlim=(0, end), ylim=(0, 1), xlabel="time (s)", ylabel="probability")
        figure.legend(
            *lower.get_legend_handles_labels(), loc="lower center", ncol=columns, bbox_to_anchor=(0.5, 0.02 / height),
            borderaxespad=0, handlelength=2, columnspacing=1.5,
        )  # fmt: skip
    return Chart(figure)


def _legend(names: Sequence[str], width: float) -> tuple[list[str], int]:
    """Return the names as far as they fit into a width in inches, and the number of columns for them."""
    letters = font(_TEXT)
    shown = [fitted(name, letters, (width - _HANDLE) * POINTS) for name in names]
    widest = max(letters.getlength(name) for name in shown) / POINTS + _HANDLE + 0.2
    return shown, max(1, min(len(shown), int(width / widest)))
