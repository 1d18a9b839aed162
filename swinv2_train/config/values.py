"""Checks of the settings for images whose values are not intensities of 8 or 16 bits. Torch-free."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from swinv2_train.config.errors import ConfigError

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config, DataConfig

VALUE_KEYS = ("scale", "nodata", "fill")
"""Keys of the section `data` that say how stored values become those of the model."""
MEAN = "mean"
"""Value of `data.fill`: the mean that images are normalized with, so that missing pixels become zero."""
_PERCENTILES = re.compile(r"p(\d+(?:\.\d+)?)-p(\d+(?:\.\d+)?)")


def value_settings(data: DataConfig) -> dict[str, Any]:
    """Return the settings of stored values for the records of a model; none without `data.scale`."""
    return {} if data.scale is None else {key: getattr(data, key) for key in VALUE_KEYS}


def percentiles(scale: Any) -> tuple[float, float] | None:
    """Return the two percentiles that `data.scale` asks for, such as p1-p99; None for numbers or no scale."""
    match = _PERCENTILES.fullmatch(scale) if isinstance(scale, str) else None
    return (float(match[1]), float(match[2])) if match else None


def scale_pairs(scale: list[Any]) -> list[list[float]]:
    """Return the (low, high) pairs of a `data.scale` of numbers: one for all channels, or one per channel."""
    return scale if scale and isinstance(scale[0], (list, tuple)) else [scale]


def check_values(config: Config) -> None:
    """Check `data.scale`, `data.nodata`, and `data.fill`.

    Raises:
        ConfigError: for the first error.
    """
    data, channels = config.data, config.model.in_channels
    if data.scale is None:
        for key, default in (("nodata", None), ("fill", MEAN)):
            if getattr(data, key) != default:
                hint = "needs data.scale, the range of the stored values, such as data.scale=[0,1]"
                raise ConfigError(f"data.{key}", getattr(data, key), hint)
        return
    check_scale(data.scale, channels)
    for key, words in (("nodata", (None,)), ("fill", (MEAN,))):
        value = getattr(data, key)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if value not in words and not (len(numbers) in (1, channels) and all(map(_is_number, numbers))):
            hint = f"must be {words[0] or 'null'}, a number, or one number per channel, model.in_channels={channels}"
            raise ConfigError(f"data.{key}", value, hint)


def check_scale(scale: Any, channels: int) -> None:
    """Check the form of `data.scale`.

    Raises:
        ConfigError: for anything but numbers of that many channels, or percentiles.
    """
    examples = "null, [low,high], a list of such pairs, or percentiles of the dataset card such as p1-p99"
    if isinstance(scale, str):
        found = percentiles(scale)
        if found is None or not found[0] < found[1] <= 100:
            raise ConfigError("data.scale", scale, f"must be {examples}, from p0 to p100")
        return
    pairs = scale_pairs(scale) if isinstance(scale, (list, tuple)) else []
    plain = all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs)
    if not pairs or not plain:
        raise ConfigError("data.scale", scale, f"must be {examples}")
    if len(pairs) not in (1, channels):
        hint = f"has {len(pairs)} pairs; set one for all channels, or one per channel, model.in_channels={channels}"
        raise ConfigError("data.scale", scale, hint)
    wrong = next((pair for pair in pairs if not pair[0] < pair[1]), None)
    if wrong is not None:
        raise ConfigError("data.scale", scale, f"in {list(wrong)}, the first number must be below the second")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_label(label: str | None) -> None:
    """Check the form of `data.label`; see `LabelSource`.

    Raises:
        ConfigError: if it names no member and no field.
    """
    if label is not None and (not label.strip(" :./") or label.endswith(":") or label.startswith(":")):
        hint = "must be a member such as label.cls, a field of the member json such as species, or null"
        raise ConfigError("data.label", label, hint)
