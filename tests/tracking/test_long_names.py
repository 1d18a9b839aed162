"""Every chart and sheet with names of 60 characters: nothing is cut, leaves the figure, or covers other text."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from swinv2_train.analysis.activations import activation_chart
from swinv2_train.analysis.window_transfer import Point
from swinv2_train.cli.analyze_display import windows_chart, windows_text
from swinv2_train.cli.sheet import Entry, png_sheet
from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.lettering import font, wrapped
from swinv2_train.models.activations import BlockActivations
from swinv2_train.tasks.pictures import prediction_sheet
from swinv2_train.tracking.charts import Chart, Series, line_chart
from swinv2_train.tracking.confusion import confusion_chart
from swinv2_train.tracking.figures import with_heading
from swinv2_train.tracking.sweep_charts import sweep_chart


def long(number: int) -> str:
    """A name of 60 characters that differs from the others at its end."""
    return f"a swallowtail butterfly of the genus Papilio, seen from {number:04d}".ljust(60, "x")


def confusion(classes: int) -> np.ndarray:
    rng = np.random.default_rng(classes)
    matrix = np.diag(rng.integers(20, 2000, classes)).astype(float)
    matrix[rng.integers(0, classes, classes), rng.integers(0, classes, classes)] += 3
    matrix[-1] = 0
    return matrix


@functools.cache
def trained(window: int) -> Config:
    return compose([f"model.window={window}", "task=classification", "task.num_classes=3", "data.resolution=256"])


def curve(window: int, *points: tuple[int, float], samples: int = 1234) -> Any:
    """A curve as `swinv2-analyze windows` measures it."""
    measured = [Point(side, (side * 32, side * 32), {"top1": top1}, 10.0, samples) for side, top1 in points]
    return SimpleNamespace(config=trained(window), points=measured, step=5, source=Path("run"))


def windows(*trained: int) -> Chart:
    curves = {long(n): curve(side, (6, 0.70), (8, 0.81 + n / 100), (16, 0.78)) for n, side in enumerate(trained)}
    return windows_chart(curves)


def signal() -> Chart:
    blocks = [BlockActivations(f"layers.{n // 2}.blocks.{n % 2}", 2.0**n, 1.0) for n in range(8)]
    return activation_chart({long(n): blocks for n in range(3)})


CHARTS: dict[str, Callable[[], Chart]] = {
    "confusion-3": lambda: confusion_chart(confusion(3), [long(n) for n in range(3)]),
    "confusion-20": lambda: confusion_chart(confusion(20), [long(n) for n in range(20)]),
    "confusion-100": lambda: named_confusion(),
    "confusion-300": lambda: confusion_chart(confusion(300), [long(n) for n in range(300)]),
    "windows-1": lambda: windows(8),
    "windows-3": lambda: windows(8, 8, 12),
    "signal": signal,
    "legend": lambda: line_chart(
        [Series(f"{long(1)} {long(2)}", [1, 2], [3, 4]), Series("_b", [1, 2], [4, 3])],
        x_label="x", y_label="y", title=long(1) * 2,
    ),
    "sweep-names": lambda: sweep_chart([(long(n), n) for n in range(25)], x_label="variant", y_label="eval/loss"),
    "sweep-rates": lambda: sweep_chart(
        [("5e-4", 1.0), ("1e-3", 2.0), ("9.9e-4", 2.0)], x_label="optim.lr", y_label="eval/loss"
    ),
}  # fmt: skip


@functools.cache
def named_confusion() -> Chart:
    return confusion_chart(confusion(100), [long(n) for n in range(99)] + ["n" * 500])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_keeps_its_text_inside_and_apart(name: str) -> None:
    figure = CHARTS[name]().figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    drawn, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert 0 <= drawn.x0 < drawn.x1 <= width
    assert 0 <= drawn.y0 < drawn.y1 <= height
    for axes in figure.axes:
        for axis, low, high in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
            ticks = [tick for tick in axis.get_ticklabels() if tick.get_text() and tick.get_rotation() != 30]
            boxes = sorted((tick.get_window_extent(renderer) for tick in ticks), key=lambda box: getattr(box, low))
            for one, other in pairwise(boxes):
                assert getattr(one, high) <= getattr(other, low) + 1, f"labels of {axis.axis_name} overlap"
    assert min(axes.get_window_extent(renderer).width for axes in figure.axes[:1]) > 0.3 * 72


def labels(chart: Chart) -> tuple[list[str], list[str], list[str]]:
    """The labels left, below, and right of a confusion matrix."""
    axes = chart.figure.axes[0]
    right = axes.child_axes[0] if axes.child_axes else axes
    ticks = axes.get_yticklabels(), axes.get_xticklabels(), right.get_yticklabels()
    return tuple([tick.get_text() for tick in each] for each in ticks)  # type: ignore[return-value]


def test_a_confusion_matrix_has_full_names_counts_and_one_unit() -> None:
    matrix, chart = confusion(100), named_confusion()
    left, below, right = labels(chart)
    assert left == below == [*(long(n) for n in range(99)), "class 99"]
    assert right == [f"{count:,.0f}" for count in matrix.sum(axis=1)]
    axes, bar = chart.figure.axes[:2]
    assert axes.get_title() == f"{matrix.sum():,.0f} images"
    assert bar.get_ylabel() == "% of the images of the true class"
    assert axes.images[0].norm.vmax == 100
    small = confusion_chart(np.array([[999.0, 1.0], [25.0, 75.0]]), ["cat", "dog"]).figure.axes[0]
    assert [text.get_text() for text in small.texts] == ["100", "<1", "25", "75"]
    assert "number" in confusion_chart(confusion(300)).figure.axes[0].get_xlabel()


def test_the_window_curve_has_samples_and_marks_the_windows_of_the_training() -> None:
    def marks(chart: Chart) -> dict[str, float]:
        lines = chart.figure.axes[0].get_lines()
        return {line.get_label(): line.get_xdata()[0] for line in lines if "trained" in line.get_label()}

    same, different = windows_chart({"a": curve(8, (6, 0.5)), "b": curve(8, (6, 0.6))}), windows(8, 12)
    assert marks(same) == {"trained window: 8": 8}
    assert same.figure.axes[0].get_title() == "1,234 samples"
    assert marks(different) == {"trained window: 8": 8, "trained window: 12": 12}
    alone = windows_chart({"a": curve(8, (6, 0.5), samples=5)}).figure.axes[0]
    assert alone.get_title() == "a, 5 samples"
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["a", "trained window: 8"]


def test_windows_show_how_large_the_images_were() -> None:
    def points(*sizes: tuple[int, int] | None) -> Any:
        listed = [
            Point(side, size, {"top1": 0.5}, 10.0, 9, scale=None if size else side / 8)
            for side, size in zip((8, 12), sizes, strict=True)
        ]
        return SimpleNamespace(config=trained(8), points=listed, step=5, source=Path("run"))

    native, short, wide = points(None, None), points((64, 64), (96, 96)), points((64, 128), (96, 192))
    for curves, titles, axis in (
        ([native, native], ["W8 x1", "W12 x1.5"], "test-time window (tokens) and factor of the images"),
        ([short], ["W8 I64", "W12 I96"], "test-time window (tokens) and resolution"),
        ([short, native], ["W8", "W12"], "test-time window (tokens)"),
    ):
        named = {f"model {number}": each for number, each in enumerate(curves)}
        header = windows_text(named).strip().splitlines()[0]
        assert re.split(r"\s{2,}", header)[1:] == titles
        assert windows_chart(named).figure.axes[0].get_xlabel() == axis
    last = windows_text({"a": short, "b": native, "c": wide}).splitlines()[-3:]
    assert [re.split(r"\s{2,}", line.strip())[1:] for line in last] == [
        ["50.00 at I64", "50.00 at I96"], ["50.00 at x1", "50.00 at x1.5"], ["50.00 at I64x128", "50.00 at I96x192"]
    ]  # fmt: skip


def test_learning_rates_are_on_a_logarithmic_axis() -> None:
    def axis(key: str, *values: str) -> Any:
        return sweep_chart([(value, 1.0) for value in values], x_label=key, y_label="loss").figure.axes[0]

    rates = axis("optim.lr", "5e-4", "1e-3", "9.9e-4")
    assert rates.get_xscale() == "log"
    assert [text.get_text() for text in rates.get_xticklabels()] == ["0.0005", "0.00099"]
    assert axis("optim.lr", "3e-4").get_xscale() == "log"
    assert axis("optim.min_lr", "0", "1e-5").get_xscale() == "linear"
    assert axis("optim.weight_decay", "0.1", "0.2").get_xscale() == "linear"


def test_text_is_wrapped_to_a_width_and_loses_nothing() -> None:
    letters = font(13)
    for text in (long(3), "w" * 100, "a b", ""):
        lines = wrapped(text, letters, 150)
        assert all(letters.getlength(line) <= 150 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped(long(3), letters, 150, most=2)[1].endswith("…")


def test_sheets_make_room_for_long_names() -> None:
    def sheet(name: str, count: int = 9) -> Image.Image:
        images = [Image.new("RGB", (8, 8), (28 * n, 0, 0)) for n in range(count)]
        return prediction_sheet(images, [{0: 1.0}] * count, [{0: 0.9}, *[{1: 0.7}] * (count - 1)], [name, name])

    assert sheet(long(1)).height > sheet("cat").height + 100
    picture = Image.new("RGB", (60, 40), "blue")
    ImageDraw.Draw(picture).ellipse((10, 10, 30, 30), "red")
    entries = {
        name: [Entry(Path(name), Entry.of(Path(name), picture).jpeg, [(name, 0.8), (name, 0.2)])] * 5
        for name in (long(1), "cat")
    }
    heights = [png_sheet(each, "model").height for each in entries.values()]
    assert heights[0] > heights[1] + 100
    assert with_heading(picture, "step 1,200 of a long run").size[0] > picture.width
