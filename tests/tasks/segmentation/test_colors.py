"""Colors of classes: fixed by their number, and distinct."""

from __future__ import annotations

import numpy as np
import pytest

from swinv2_train.tasks.segmentation.colors import IGNORED, color_code, painted, palette


def test_colors_are_fixed_by_number_and_distinct() -> None:
    colors = palette(65536)
    codes = colors.astype(np.int64) @ [1 << 16, 1 << 8, 1]
    assert len(np.unique(codes)) == 65536
    assert not (colors == IGNORED).all(axis=1).any()
    for classes in (1, 2, 150, 300):
        assert np.array_equal(palette(classes), colors[:classes])
    near = np.linalg.norm(colors[:40, None].astype(int) - colors[None, :40], axis=2) + 1000 * np.eye(40)
    assert near.min() > 25  # neighbors in a figure of many classes can be told apart
    with pytest.raises(ValueError, match="65536"):
        palette(65537)


def test_a_label_map_is_painted_and_ignored_pixels_are_gray() -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    image = painted(labels, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image[0], palette(3)[:2])
    assert tuple(image[1, 1]) == IGNORED
    assert tuple(painted(labels, 301)[1, 1]) == tuple(palette(301)[255]), "a map of 8 bits with more classes"
    assert color_code(0) == "#000000"
    assert color_code(1) == "#{:02X}{:02X}{:02X}".format(*palette(2)[1])
