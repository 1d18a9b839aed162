"""Charts show what they are given, leave no state behind, and come as pictures and as vectors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from swinv2_train.tracking.charts import PALETTE, Series, line_chart, reliability_chart
from swinv2_train.tracking.confusion import confusion_chart

TWO = [Series("one", [1, 2, 3], [1.0, 10.0, 100.0]), Series("two", [1, 2, 3], [2.0, 0.0, float("nan")])]


@pytest.mark.slow
def test_a_chart_is_a_picture_and_two_files(tmp_path: Path) -> None:
    chart = line_chart(TWO, x_label="block", y_label="amplitude", size=(4.0, 3.0))
    assert chart.image.mode == "RGB"
    assert chart.image.size == (800, 600)
    written = chart.save(tmp_path / "curve.png")
    assert [path.name for path in written] == ["curve.png", "curve.pdf"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert written[1].read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_same_chart_makes_the_same_bytes() -> None:
    first, second = (line_chart(TWO, x_label="x", y_label="y") for _ in range(2))
    assert first.encoded("png") == second.encoded("png")
    assert first.encoded("pdf") == second.encoded("pdf")


def test_curves_keep_their_values_and_gaps() -> None:
    (axes,) = line_chart(TWO, x_label="block", y_label="amplitude", log_y=True, separators=[1.5]).figure.axes
    _, one, two = axes.get_lines()
    assert one.get_ydata().tolist() == [1.0, 10.0, 100.0]
    assert np.isnan(two.get_ydata()).tolist() == [False, True, True]
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    assert (one.get_color(), two.get_color()) == PALETTE[:2]
    assert one.get_marker() != two.get_marker()


def test_a_curve_of_many_points_has_few_markers() -> None:
    many = Series("many", list(range(101)), list(range(101)), every=10)
    (axes,) = line_chart([many, TWO[0]], x_label="x", y_label="y").figure.axes
    assert [line.get_markevery() for line in axes.get_lines()] == [10, 1]


def test_a_zero_is_shown_on_a_plain_axis() -> None:
    (axes,) = line_chart(TWO, x_label="x", y_label="y").figure.axes
    assert np.isnan(axes.get_lines()[1].get_ydata()).tolist() == [False, False, True]


def test_a_confusion_matrix_shows_shares_of_the_true_class() -> None:
    chart = confusion_chart(np.array([[3.0, 1.0], [0.0, 0.0]]), ["cat", "dog"])
    axes = chart.figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["75", "25"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "dog"]
    assert [text.get_text() for text in axes.child_axes[0].get_yticklabels()] == ["4", "0"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[75, 25], [0, 0]])


def test_predicted_classes_may_have_names_of_their_own() -> None:
    matrix = np.array([[3.0, 1.0], [2.0, 0.0]])
    chart = confusion_chart(matrix, ["cat", "(no object)"], predicted=["cat", "(missed)"], title="4 cats")
    axes = chart.figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["cat", "(missed)"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "(no object)"]
    assert axes.get_title() == "4 cats"
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        confusion_chart(matrix, predicted=["cat"])


def test_a_single_mistake_among_a_thousand_classes_is_seen() -> None:
    matrix = np.diag(np.full(1000, 50.0))
    matrix[10, 700] = 1.0
    shown = confusion_chart(matrix).figure.axes[0].images[0].get_array()
    assert shown.shape == (250, 250)
    assert shown[2, 175] == pytest.approx(100 / 51)
    assert shown.count() == 251  # the diagonal and this one


def test_a_reliability_diagram_has_a_bar_per_full_bin() -> None:
    bins = np.array([[0.0, 0.0, 0.0], [10.0, 5.0, 4.0], [30.0, 25.0, 27.0]])
    upper, lower = reliability_chart(bins, 0.083).figure.axes
    assert [bar.get_height() for bar in upper.patches] == [pytest.approx(0.4), pytest.approx(0.9)]
    assert [bar.get_height() for bar in lower.patches] == [0.0, 25.0, 75.0]
    assert upper.get_title() == "expected calibration error 8.3%"


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        line_chart([], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="2 places for 1 values"):
        line_chart([Series("a", [1, 2], [1.0])], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="square"):
        confusion_chart(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        confusion_chart(np.eye(2), ["a"])
    with pytest.raises(ValueError, match="bins"):
        reliability_chart(np.zeros((15, 2)), 0.0)


@pytest.mark.slow
def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    reliability_chart(np.ones((15, 3)), 0.0).encoded("pdf")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
