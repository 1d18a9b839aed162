"""Figures of a segmenter: colors by class, errors in red, ignored pixels striped, a legend of what occurs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from swinv2_train.tasks.segmentation.colors import palette
from swinv2_train.tasks.segmentation.pictures import WRONG, Segmented, segmentation_sheet

IGNORE = 255


def example(channels: int = 3, size: tuple[int, int] = (64, 64), title: str = "") -> Segmented:
    """Three classes in columns; the prediction takes the last one for class 1, and a corner is ignored."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.array([[0, 1, 4]]), size[0], axis=0)[:, np.arange(size[1]) * 3 // size[1]]
    predicted = np.where(truth == 4, 1, truth)
    truth[: size[0] // 4, : size[1] // 4] = IGNORE
    return Segmented(rng.random((channels, *size)), truth, predicted, title)


def share(sheet: Image.Image, color: tuple[int, ...]) -> float:
    return float((np.asarray(sheet) == color).all(axis=2).mean())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_number_of_channels(channels: int) -> None:
    sheet = segmentation_sheet([example(channels)], 5, IGNORE)
    area = 256 * 256 / (sheet.width * sheet.height)
    # Class 1: a third of the truth and two thirds of the prediction; wrong: a third of the errors; plus swatches.
    assert share(sheet, tuple(palette(5)[1])) == pytest.approx(area, rel=0.02)
    assert share(sheet, WRONG) == pytest.approx(area / 3, rel=0.03)
    assert share(sheet, tuple(palette(5)[2])) == 0  # occurs nowhere, so the legend does not have it


def test_a_dark_image_of_16_bits_is_stretched() -> None:
    dark = replace(example(), image=0.01 * example().image)
    plain, shown = (segmentation_sheet([each], 5, IGNORE) for each in (dark, replace(dark, deep=True)))
    image = (slice(60, 200), slice(60, 200))
    assert np.asarray(plain)[image].max() < 10
    assert np.asarray(shown)[image].max() > 200


def test_many_classes_long_names_and_sizes_that_differ() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 150, (40, 300))
    odd = Segmented(rng.random((3, 20, 150)), truth, np.flip(truth, 1), "mIoU\n0.010")
    names = [f"a class whose name is longer than the figure has room for, number {k}" for k in range(150)]
    plain = segmentation_sheet([example(title="mIoU\n0.500"), odd], 150, IGNORE, names, "word " * 100)
    assert plain.width < 1400
    assert segmentation_sheet([example()], 150, IGNORE, names).height < plain.height


def test_a_tiny_image_and_one_without_a_labeled_pixel() -> None:
    blank = Segmented(np.zeros((3, 1, 9)), np.full((1, 9), IGNORE), np.zeros((1, 9), np.int64))
    sheet = segmentation_sheet([blank], 2, IGNORE)
    assert share(sheet, WRONG) < 0.01  # only in the legend
