"""Image files as input of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config
from swinv2_train.data.augment import eval_crop, normalise
from swinv2_train.data.decode import DecodeOptions, decode
from swinv2_train.data.errors import BrokenSample


def read_image(path: Path, channels: int, options: DecodeOptions) -> Tensor:
    """Read a file as (channels, H, W) uint8 or uint16.

    Raises:
        BrokenSample: if it cannot be read or decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BrokenSample(f"it cannot be read ({error.strerror})") from error
    return decode(data, channels, options)


def prepare(image: Tensor, config: Config, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(C, H, W) uint8 or uint16 -> (C, h, w) float32: the crop and the normalization of an evaluation."""
    data = config.data
    cropped = eval_crop(image, resolution(config), data.crop_pct, data.crop_mode, data.augment.interpolation)
    return normalise(cropped, mean, std)
