"""Arrays to pictures, and grids whose every part lies where the layout says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.tracking.figures import STRIP_GAP, film_strip, image_grid, to_pil

RED, BLUE = (255, 0, 0), (0, 0, 255)


def boxes(picture: Image.Image, colour: tuple[int, int, int]) -> list[int]:
    """Return left, top, right, and bottom of the pixels that have exactly this color."""
    where = np.argwhere((np.asarray(picture) == colour).all(axis=-1))
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0)
    return [left, top, right, bottom]


def test_one_channel_is_gray_and_three_are_rgb() -> None:
    grey = to_pil(np.full((1, 4, 6), 0.5))
    assert (grey.mode, grey.size, grey.getpixel((0, 0))) == ("L", (6, 4), 128)
    colour = to_pil(torch.tensor([1.0, 0.0, 0.2]).reshape(3, 1, 1).expand(3, 4, 6))
    assert (colour.mode, colour.size, colour.getpixel((5, 3))) == ("RGB", (6, 4), (255, 0, 51))


def test_values_outside_the_range_and_not_finite_ones_are_clipped() -> None:
    values = np.array([[[-3.0, 0.0, 1.0, 9.0, np.nan, np.inf, -np.inf]]])
    assert list(np.asarray(to_pil(values))[0]) == [0, 0, 255, 255, 0, 0, 0]


@pytest.mark.parametrize(("channels", "mode"), [(2, "L"), (4, "RGB"), (13, "RGB")])
def test_other_channel_counts_are_stretched_to_the_full_range(channels: int, mode: str) -> None:
    dark = np.linspace(0.010, 0.011, 400).reshape(1, 20, 20).repeat(channels, axis=0)
    shown = to_pil(dark)
    assert shown.mode == mode
    assert np.asarray(shown).min() == 0
    assert np.asarray(shown).max() == 255


def test_panels_to_be_compared_share_a_stretch() -> None:
    image = np.linspace(0.0, 0.1, 400).reshape(1, 20, 20).repeat(5, axis=0)
    darker = to_pil(image * 0.5, like=image)
    assert np.asarray(darker).max() == pytest.approx(127.5, abs=4)
    assert np.asarray(to_pil(image * 0.5)).max() == 255


def test_colors_survive_a_stretch_and_single_values_are_shown_as_they_are() -> None:
    dark = np.linspace(0.01, 0.02, 400).reshape(1, 20, 20) * np.array([1.0, 0.8, 0.6])[:, None, None]
    assert np.asarray(to_pil(dark)).max() < 10
    shown = np.asarray(to_pil(dark, stretch=True)).astype(int)
    assert (shown.min(), shown.max()) == (0, 255)
    assert (shown[-1, -1, 0] > shown[-1, -1, 1] + 40) & (shown[-1, -1, 1] > shown[-1, -1, 2] + 40)
    few = np.zeros((1, 20, 20))
    few[0, 3, 4] = 0.01  # fewer pixels than the percentiles see
    assert np.asarray(to_pil(few, stretch=True))[3, 4] == 255
    assert (np.asarray(to_pil(np.full((1, 9, 9), 0.4), stretch=True)) == 102).all()


def test_an_array_that_is_not_an_image_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"not \(4, 4\)"):
        to_pil(np.zeros((4, 4)))


def test_grid_places_images_in_rows_and_columns_on_white() -> None:
    grid = image_grid([[Image.new("RGB", (150, 130), RED), Image.new("RGB", (140, 200), BLUE)]])
    red, blue = boxes(grid, RED), boxes(grid, BLUE)
    assert (red[2] - red[0] + 1, red[3] - red[1] + 1) == (150, 130)
    assert (blue[2] - blue[0] + 1, blue[3] - blue[1] + 1) == (140, 200)
    assert red[2] < blue[0]
    assert blue[1] < red[1] < red[3] < blue[3]
    assert {grid.getpixel(at) for at in ((0, 0), (grid.width - 1, 0), (0, grid.height - 1))} == {(255, 255, 255)}


def test_titles_and_footer_are_drawn_outside_the_images() -> None:
    rows = [[Image.new("RGB", (128, 128), RED)], [Image.new("RGB", (128, 128), RED)]]
    title, footer = "a title wider than the column of images", "mean loss 0.4588 at step 300, " * 10
    bare, full = image_grid(rows), image_grid(rows, [title], ["first", "second\nrow"], footer)
    left, top, right, bottom = boxes(full, RED)
    ink = np.asarray(full.convert("L")) < 160
    ink[top : bottom + 1, left : right + 1] = False
    assert ink[:top].any()
    assert ink[:, :left][top:bottom].any()
    assert ink[bottom + 1 :].any()
    border = np.ones_like(ink)
    border[2:-2, 2:-2] = False
    assert not (ink & border).any(), "text touches the border"
    assert (full.width > bare.width, full.height > bare.height) == (True, True)


def test_a_long_footer_is_broken_into_lines_not_cut() -> None:
    row = [[Image.new("RGB", (128, 128), RED)]]
    one, many = image_grid(row, footer="loss 0.1"), image_grid(row, footer="loss 0.1 " * 20)
    assert many.width == one.width
    assert many.height > one.height + 50


def test_small_images_are_enlarged_by_whole_factors() -> None:
    left, top, right, bottom = boxes(image_grid([[Image.new("RGB", (50, 40), RED)]]), RED)
    assert (right - left + 1, bottom - top + 1) == (150, 120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one row"),
        (([[]],), "at least one image"),
        (([[Image.new("L", (8, 8))]], ["a", "b"]), "2 titles for 1 columns"),
        (([[Image.new("L", (8, 8))]], [], ["a", "b"]), "2 titles for 1 rows"),
    ],
)
def test_a_grid_that_does_not_add_up_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(*arguments)


@pytest.mark.parametrize(
    ("frames", "shown"), [(1, [0]), (2, [0, 1]), (8, [*range(8)]), (16, [0, 2, 4, 6, 9, 11, 13, 15])]
)
def test_a_film_strip_goes_from_the_first_frame_to_the_last(frames: int, shown: list[int]) -> None:
    clip = np.arange(frames, dtype=np.uint8)[None, :, None, None].repeat(3, 0).repeat(4, 2).repeat(6, 3)
    for values in (clip, torch.from_numpy(clip).float() / 255):
        strip = film_strip(values)
        assert strip.size == (len(shown) * (6 + STRIP_GAP) - STRIP_GAP, 4)
        assert [strip.getpixel((number * (6 + STRIP_GAP) + 5, 3)) for number in range(len(shown))] == [
            (value,) * 3 for value in shown
        ]
