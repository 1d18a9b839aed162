"""Range of stored values that a model sees as 0 to 1 (`data.scale`), and the pixels that have no data. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import DataConfig
from swinv2_train.config.values import MEAN, percentiles, scale_pairs
from swinv2_train.data.card import Card

Nodata = tuple[float, ...] | None
"""Stored value of pixels without data: one for all channels or one per channel; None: that of the file, if any."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ValueRange:
    """Conversion of stored values to [0, 1]."""

    pairs: tuple[tuple[float, float], ...]
    """(low, high): the stored values that become 0 and 1; one pair for all channels or one per channel."""
    fill: tuple[float, ...]
    """Result in [0, 1] of pixels without data: one for all channels or one per channel."""
    nodata: Nodata = None

    @classmethod
    def of(cls, data: DataConfig, mean: Sequence[float]) -> ValueRange | None:
        """Return the range of a complete config; None without `data.scale`.

        Args:
            mean: per-channel mean that images are normalized with.
        """
        if data.scale is None:
            return None
        pairs = tuple((float(low), float(high)) for low, high in scale_pairs(data.scale))
        fill = tuple(mean)
        if data.fill != MEAN:
            values = numbers_of(data.fill) or ()
            count = max(len(pairs), len(values))
            ends = zip(_for_each(values, count), _for_each(pairs, count), strict=True)
            fill = tuple(min(max((value - low) / (high - low), 0.0), 1.0) for value, (low, high) in ends)
        return cls(pairs, fill, numbers_of(data.nodata))


def numbers_of(value: Any) -> Nodata:
    """Return one number or a list of them as a tuple; None for None."""
    if value is None:
        return None
    return tuple(float(each) for each in (value if isinstance(value, (list, tuple)) else (value,)))


def _for_each(values: Sequence[Any], channels: int) -> Sequence[Any]:
    return list(values) * channels if len(values) == 1 else values


def missing_pixels(planes: np.ndarray, nodata: Nodata) -> np.ndarray:
    """Return (C, H, W) bool: True for pixels that are NaN, beyond the finite numbers of float32, or equal to `nodata`.

    Args:
        planes: (C, H, W) as stored.
        nodata: with several values, one per channel of `planes`; fewer or more apply to all channels.
    """
    missing = np.zeros(planes.shape, bool)
    if planes.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            missing = ~(np.abs(planes) <= _LARGEST)
    values = nodata or ()
    for number, plane in enumerate(planes):
        for value in values[number : number + 1] if len(values) == len(planes) else values:
            # In the precision of the image: text such as -3.4028235e+38 is rarely the exact stored number.
            with np.errstate(over="ignore"):
                missing[number] |= plane == (plane.dtype.type(value) if plane.dtype.kind == "f" else value)
    return missing


def fill_in_scale(data: DataConfig, card: Card | None, channels: int) -> None:
    """Replace percentiles in `data.scale` by the numbers on the dataset card, in place.

    Raises:
        ConfigError: if the card does not have them, a channel has a single value, or images need `data.scale`.
    """
    wanted = percentiles(data.scale)
    found = card.values_of(channels) if card is not None else None
    if wanted is None:
        kinds = sorted(found.types.keys() - {"uint16"}) if card is not None and found is not None else []
        if kinds and data.scale is None and sum(found.types[kind] for kind in kinds) == card.num_samples:
            hint = "set the range of their values, such as data.scale=[0,1], or percentiles of the card, such as p1-p99"
            raise ConfigError("data.scale", "null", f"the images have values of {', '.join(kinds)}: {hint}")
        return
    if card is None or found is None or found.empty:
        why = "the shards have no dataset card"
        if card is not None:
            why = f"the dataset card has no values of {channels}-channel images with more than 8 bits"
        raise ConfigError("data.scale", data.scale, f"{why}: pack them with swinv2-data, or set numbers [low,high]")
    if partial := card.partial_values(channels):
        raise ConfigError("data.scale", data.scale, f"{partial}: set numbers [low,high]")
    pairs = [[each.percentile(percent) for percent in wanted] if each.count else [0.0, 1.0] for each in found.channels]
    flat = next((number for number, (low, high) in enumerate(pairs) if not low < high), None)
    if flat is not None:
        value = f"{pairs[flat][0]:.6g}"
        hint = f"both ends of channel {flat} are {value}: set numbers [low,high] for every channel"
        raise ConfigError("data.scale", data.scale, hint)
    data.scale = pairs
