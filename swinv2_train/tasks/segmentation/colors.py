"""Colors of classes, fixed by the number of a class: the same in figures, overlays, and the palettes of label maps."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np

_GOLDEN = 0.618033988749895  # fraction of the color circle between one class and the next
_SHADES = ((0.80, 0.95), (0.55, 1.00), (0.90, 0.60), (0.45, 0.80), (1.00, 0.80))
"""Saturation and brightness, by turns."""
_VIVID = 256
IGNORED = (128, 128, 128)
"""Color of pixels without a class; no class has it."""
_STRIPE = (200, 200, 200)
"""Color between the stripes over pixels without a class."""
_STRIPE_WIDTH = 4
_MOST = 1 << 16


@cache
def palette(classes: int) -> np.ndarray:
    """Return the color of each class, (classes, 3) uint8, read-only.

    Class 0, which many sets use for the background, is black; the next 255 are far apart on the color circle. Up to
    65,536 colors are distinct.

    Raises:
        ValueError: for more classes.
    """
    if classes > _MOST:
        raise ValueError(f"there are colors for {_MOST} classes, not {classes}")
    vivid = np.zeros((_VIVID, 3), np.uint8)
    for number in range(1, _VIVID):
        saturation, brightness = _SHADES[number % len(_SHADES)]
        color = colorsys.hsv_to_rgb(number * _GOLDEN % 1, saturation, brightness)
        vivid[number] = [round(255 * each) | 1 for each in color]  # odd, unlike those of higher numbers
    numbers = np.arange(max(classes, _VIVID))
    spread = np.zeros((len(numbers), 3), np.uint8)
    for bit in range(16):  # as in Pascal VOC: the bits of the number, by turns to red, green, and blue, highest first
        spread[:, bit % 3] |= ((numbers >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    spread[:_VIVID] = vivid
    colors = spread[:classes]
    colors.flags.writeable = False
    return colors


def painted(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return a label map in the colors of its classes, (H, W) integers -> (H, W, 3) uint8; other values are gray."""
    table = np.concatenate([palette(classes), np.array([IGNORED], np.uint8)])
    return table[np.minimum(labels.astype(np.int64), classes)]


def stripes(shape: tuple[int, ...], width: int = _STRIPE_WIDTH) -> np.ndarray:
    """Return diagonal stripes, which mark pixels without a class, (H, W, 3) uint8."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    dark = (rows + columns) // width % 2 == 0
    return np.where(dark[..., None], np.array(IGNORED, np.uint8), np.array(_STRIPE, np.uint8))


def color_code(number: int) -> str:
    """Return the color of a class as #RRGGBB."""
    return "#{:02X}{:02X}{:02X}".format(*palette(number + 1)[number].tolist())


def object_color(number: int) -> tuple[int, int, int]:
    """Return the color of a class of objects: that of the next number in label maps, because black is the first."""
    red, green, blue = palette(number + 2)[number + 1].tolist()
    return red, green, blue
