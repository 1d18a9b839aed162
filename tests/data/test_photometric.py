"""Photometric distortion against Python's colorsys, pixel by pixel."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from swinv2_train.data.photometric import BRIGHTNESS, HUE, Photometric

GRAYS = [(0, 0, 0), (255, 255, 255), (77, 77, 77), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 9, 9)]


def colors(largest: int = 255) -> torch.Tensor:
    """(3, 40, 5): random colors, in more rows than are distorted at a time, and colors at the ends of the range."""
    found = np.random.default_rng(0).integers(0, 256, (200, 3))
    found[: len(GRAYS)] = GRAYS
    wide = (found.astype(np.int64) * largest // 255).astype(np.uint8 if largest == 255 else np.uint16)
    return torch.from_numpy(wide.reshape(40, 5, 3)).permute(2, 0, 1)


def by_colorsys(drawn: Photometric, pixel: list[float]) -> list[float]:
    def contrast(values: list[float]) -> list[float]:
        return [min(value * drawn.contrast, 1) for value in values]

    values = [min(max(value + drawn.brightness, 0), 1) for value in pixel]
    values = values if drawn.contrast_last else contrast(values)
    hue, saturation, value = colorsys.rgb_to_hsv(*values)
    values = list(colorsys.hsv_to_rgb((hue + drawn.hue) % 1, min(saturation * drawn.saturation, 1), value))
    return contrast(values) if drawn.contrast_last else values


CASES = [
    Photometric(brightness=0.12),
    Photometric(brightness=-0.1, contrast=1.5),
    Photometric(contrast=0.5),
    Photometric(saturation=1.5),
    Photometric(saturation=0.5),
    Photometric(hue=HUE),
    Photometric(hue=-HUE),
    Photometric(0.1, 1.4, 1.3, 0.07),
    Photometric(-0.1, 1.4, 0.6, -0.07, contrast_last=True),
]


@pytest.mark.parametrize("drawn", CASES, ids=range(len(CASES)))
def test_every_pixel_is_that_of_colorsys(drawn: Photometric) -> None:
    for largest in (255, 65535):
        image = colors(largest)
        found = drawn(image)
        assert (found.dtype, found.shape) == (image.dtype, image.shape)
        pixels = (image.numpy().reshape(3, -1).T / largest).tolist()
        expected = np.array([by_colorsys(drawn, pixel) for pixel in pixels]).T * largest
        error = np.abs(found.numpy().reshape(3, -1) - expected)
        assert error.max() < 0.51 if largest == 255 else 0.6


def test_without_a_change_the_image_is_returned_and_it_is_never_written_to() -> None:
    image = colors()
    assert Photometric(contrast_last=True)(image) is image
    before = image.clone()
    CASES[-1](image)
    assert torch.equal(image, before)


def test_draws_have_the_published_ranges_and_half_of_each_is_left_out() -> None:
    rng = np.random.default_rng(0)
    drawn = [Photometric.draw(rng) for _ in range(2000)]
    for name, still, low, high in (
        ("brightness", 0, -BRIGHTNESS, BRIGHTNESS),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -HUE, HUE),
    ):
        values = np.array([getattr(each, name) for each in drawn])
        changed = values[values != still]
        assert 900 < len(changed) < 1100
        assert low <= changed.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < changed.max() <= high
    assert 900 < sum(each.contrast_last for each in drawn) < 1100
    assert replace(drawn[0]) == drawn[0]


def test_every_draw_takes_equally_many_numbers() -> None:
    rng, other = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(10):
        Photometric.draw(rng)
        other.random(9)
    assert rng.bit_generator.state == other.bit_generator.state
