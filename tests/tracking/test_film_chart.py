"""Film strips above curves: frames are above their times, and keep their shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from swinv2_train.tracking.charts import PALETTE, Series
from swinv2_train.tracking.film_chart import film_chart


@pytest.mark.parametrize(("count", "shape"), [(8, (90, 160)), (8, (160, 90)), (1, (160, 90))])
def test_frames_are_above_their_times_and_keep_their_shape(count: int, shape: tuple[int, int]) -> None:
    shades = np.linspace(30, 220, count).round().astype(np.uint8)
    strip = np.stack([np.full(shape, shade) for shade in shades], axis=1).reshape(shape[0], -1)
    series = [Series(name, [1.0, 5.0, 9.0], [0.2, 1.0, 0.4]) for name in ("_left $1", "a long name " * 30)]
    chart = film_chart(Image.fromarray(strip).convert("RGB"), 10.0, series, [1, 7 + 2], "name.mp4 " * 40)
    upper, lower = chart.figure.axes
    assert upper.get_title().startswith("…")
    assert [(line.get_color(), line.get_linestyle()) for line in lower.lines] == [(PALETTE[1], "-"), (PALETTE[2], "--")]
    assert lower.lines[0].get_marker() != lower.lines[1].get_marker()
    assert upper.get_xlim() == lower.get_xlim() == (0, 10)
    picture = chart.image
    box = upper.get_position()
    left, right = box.x0 * picture.width, box.x1 * picture.width
    top, bottom = (1 - box.y1) * picture.height, (1 - box.y0) * picture.height
    assert (right - left) / (bottom - top) == pytest.approx(strip.shape[1] / strip.shape[0], rel=0.02)
    pixels = np.asarray(picture)[round((top + bottom) / 2)]
    for number, shade in enumerate(shades):
        place = left + (number + 0.5) / count * (right - left)
        assert np.abs(pixels[round(place)].astype(int) - int(shade)).max() <= 2
    names = [text.get_text() for text in chart.figure.legends[0].get_texts()]
    assert names[0] == r" _left \$1"
    assert names[1].endswith("…")
