"""Stored values of any type -> float32 in [0, 1] by the range that `data.scale` sets; see `value_range`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.background import Background, flatten
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.pixels import LUMA, Pixels
from swinv2_train.data.value_range import Nodata, ValueRange, missing_pixels

ALL_MISSING = "all of its pixels are missing (nodata, NaN, or infinite)"


def unit_values(
    pixels: Pixels, channels: int | None, scale: ValueRange, background: Background, *, part: bool = False
) -> Tensor:
    """Return (C, H, W) float32 in [0, 1]: scaled in float64, clipped, and with pixels without data filled.

    Channels are adapted to `channels` as in `decode.decode`. A luma of which one channel is missing is missing.

    Args:
        part: the pixels are a part of an image, so all of them may be without data.

    Raises:
        BrokenSample: if the image cannot have this number of channels, no pixel has data, or its samples are inverted.
    """
    pixels = pixels.as_stored()
    image = pixels.image
    if pixels.alpha and image.shape[0] != channels:
        image = flatten(image, background, premultiplied=pixels.premultiplied)
    planes = image.numpy()
    missing = missing_of(pixels, planes, scale.nodata)
    if missing.all() and not part:
        raise BrokenSample(ALL_MISSING)
    made_of = sources(len(planes), channels)
    unit = np.empty((len(made_of), *planes.shape[1:]), np.float32)
    for number, source in enumerate(made_of):
        low, high = scale.pairs[number if len(scale.pairs) > 1 else 0]
        wide = planes[source[0]].astype(np.float64) if len(source) == 1 else _luma(planes)
        absent = missing[list(source)].any(axis=0)
        with np.errstate(invalid="ignore", over="ignore"):  # of pixels that are replaced
            unit[number] = np.clip((wide - low) / (high - low), 0, 1)
        unit[number][absent] = scale.fill[number if len(scale.fill) > 1 else 0]
    return torch.from_numpy(unit)


def missing_of(pixels: Pixels, planes: np.ndarray, nodata: Nodata) -> np.ndarray:
    """Return (C, H, W) bool: True for pixels of an image without data.

    Args:
        planes: its channels without alpha.
        nodata: as set; None: the value that the file names, if any.
    """
    own = None if pixels.nodata is None else (pixels.nodata,)
    return missing_pixels(planes, own if nodata is None else nodata)


def sources(have: int, channels: int | None) -> list[tuple[int, ...]]:
    """Return the stored channels that each of `channels` channels is made of. Raises BrokenSample if it cannot be."""
    if channels is None or have == channels:
        return [(number,) for number in range(have)]
    if (have, channels) == (1, 3):
        return [(0,)] * 3
    if (have, channels) == (3, 1):
        return [(0, 1, 2)]
    raise BrokenSample(f"it has {have} channels, not {channels}")


def _luma(planes: np.ndarray) -> np.ndarray:
    return sum(plane.astype(np.float64) * (weight / sum(LUMA)) for plane, weight in zip(planes, LUMA, strict=True))
