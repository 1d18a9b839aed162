"""Transparency: the color behind transparent pixels, and how an image is put on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import resize

Background = tuple[float, ...] | None
"""Color values in [0, 1], one for all channels or one per channel; None: drop the alpha channel."""
WHITE: Background = (1.0,)
_NAMED: dict[str, Background] = {"white": WHITE, "black": (0.0,), "drop": None}


def background_color(value: Any, mean: Sequence[float], key: str = "data.background") -> Background:
    """Return the color that `data.background` means.

    Args:
        value: white, black, drop, mean, a list of numbers in [0, 1], or None for white.
        mean: per-channel mean that images are normalized with.
        key: the setting, for the error message.

    Raises:
        ConfigError: if it is none of these.
    """
    if value is None:
        return WHITE
    if value == "mean":
        return tuple(mean)
    if isinstance(value, str) and value in _NAMED:
        return _NAMED[value]
    numbers = value if isinstance(value, (list, tuple)) else ()
    if not numbers or not all(isinstance(number, (int, float)) and 0 <= number <= 1 for number in numbers):
        raise ConfigError(key, value, "must be white, black, mean, drop, or a list of numbers from 0 to 1")
    return tuple(float(number) for number in numbers)


def resize_transparent(image: Tensor, size: tuple[int, int], *, premultiplied: bool = False) -> Tensor:
    """Resize an image whose last channel is alpha, so that transparent pixels do not bleed into opaque ones.

    Args:
        image: (C, H, W) uint8 or uint16.
        size: (height, width) of the result.
        premultiplied: True if the colors are already multiplied by alpha; those of the result are not.
    """
    largest = 255 if image.dtype == torch.uint8 else 65535
    values = image.to(torch.float32) / largest
    colors, alpha = values[:-1], values[-1:]
    weighted = torch.cat([colors if premultiplied else colors * alpha, alpha])
    resized = resize(weighted, size, "bicubic").clamp(0, 1)
    plain = (resized[:-1] / resized[-1:].clamp_min(1 / largest)).clamp(0, 1)
    found = (torch.cat([plain, resized[-1:]]) * largest).round().numpy()
    return torch.from_numpy(found.astype(np.uint8 if largest == 255 else np.uint16))


def flatten(image: Tensor, background: Background, *, premultiplied: bool = False) -> Tensor:
    """Put an image with an alpha channel on a color: (C + 1, H, W) -> (C, H, W), same dtype.

    Opaque pixels stay bitwise the same. A gray image becomes RGB if the color has three different values.

    Args:
        image: uint8 or uint16, the last channel is alpha.
        background: see `Background`.
        premultiplied: True if the colors are already multiplied by alpha (associated alpha in TIFF).

    Raises:
        BrokenSample: if the background has another number of channels than the image.
    """
    colors, alpha = image[:-1], image[-1:]
    largest = 255 if image.dtype == torch.uint8 else 65535
    if background is None or not (alpha.numpy() != largest).any():
        return colors
    values = background[:1] if len(set(background)) == 1 else background
    if len(colors) == 1 and len(values) == 3:
        colors = colors.expand(3, -1, -1)
    if len(values) not in (1, len(colors)):
        raise BrokenSample(f"it has {len(colors)} color channels and alpha, the background {len(values)} values")
    share = alpha.numpy().astype(np.int64)
    behind = np.rint(np.array(values) * largest).astype(np.int64)[:, None, None] * (largest - share)
    front = colors.numpy().astype(np.int64) * (largest if premultiplied else share)
    mixed = np.minimum((front + behind + largest // 2) // largest, largest)
    return torch.from_numpy(mixed.astype(np.uint8 if largest == 255 else np.uint16))
