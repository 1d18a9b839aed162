"""Dropout of entire channels (arXiv 1411.4280) with randomness as an input, like stochastic depth in `drop_path.py`."""

from __future__ import annotations

from torch import Tensor

from swinv2_train.models.drop_path import uniform_noise
from swinv2_train.models.precision import at_least_float32

_FIRST = 1 << 32
"""First counter of the channels, far beyond those of stochastic depth."""


def channel_noise(sample_seeds: Tensor, channels: int) -> Tensor:
    """Return uniform numbers for the channels of every sample, independent of those of `drop_path_noise`.

    Args:
        sample_seeds: (B,) int64, any values.

    Returns:
        (B, channels) float32 in [0, 1).
    """
    return uniform_noise(sample_seeds, _FIRST, channels)


def channel_factors(noise: Tensor, rate: float) -> Tensor:
    """Return the factor of every channel: 0 if its noise is below the rate, else 1 / (1 - rate).

    Args:
        noise: (B, C) uniform numbers in [0, 1).

    Returns:
        (B, C) in at least float32.
    """
    return (noise >= rate).to(at_least_float32(noise.dtype)) / (1 - rate)


def drop_channels(x: Tensor, factors: Tensor | None) -> Tensor:
    """Return (B, C, H, W) times the factors (B, C), in the dtype of x; None: unchanged."""
    return x if factors is None else (x * factors[:, :, None, None]).to(x.dtype)
