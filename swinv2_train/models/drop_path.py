"""Stochastic depth with randomness as an input: given numbers decide, as a pure function, which branches are dropped.

If the numbers depend only on the sample, it drops the same branches for any number of ranks, any micro-batch, and with
or without activation recomputation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swinv2_train.models.precision import at_least_float32

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def _mix(x: Tensor) -> Tensor:
    """The output function of splitmix64 on int64 bit patterns (multiplication wraps around)."""
    for shift, factor in _MIX:
        x = (x ^ _shift_right(x, shift)) * factor
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts copy the sign bit; clear the copies


def uniform_noise(sample_seeds: Tensor, first: int, count: int) -> Tensor:
    """Return uniform numbers as a function of only the sample's seed and the number of the counter.

    Integer arithmetic only, so CPU and GPU give the same bits.

    Args:
        sample_seeds: (B,) int64, any values; consecutive ones are fine.
        first: number of the first counter; other counters give independent numbers.

    Returns:
        (B, count) float32 in [0, 1).
    """
    counters = torch.arange(first, first + count, device=sample_seeds.device) * _GAMMA
    bits = _mix(_mix(sample_seeds.long() * _GAMMA)[:, None] + counters)
    return _shift_right(bits, 40).float() * 2.0**-24


def drop_path_noise(sample_seeds: Tensor, num_blocks: int) -> Tensor:
    """Return uniform numbers for the branches of every block, see `uniform_noise`.

    Returns:
        (B, num_blocks, 2) float32 in [0, 1): attention and MLP branch of every block.
    """
    return uniform_noise(sample_seeds, 1, 2 * num_blocks).view(-1, num_blocks, 2)


def branch_scales(noise: Tensor, rates: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return the factor of every branch: 0 if its noise is below the block's rate, else 1 / (1 - rate).

    Args:
        noise: (B, num_blocks, 2) uniform numbers in [0, 1).
        rates: stochastic depth rate per block.
        dtype: dtype of the activations.

    Returns:
        (B, num_blocks, 2) in at least float32, so that the factor is not rounded to half precision.
    """
    rate = torch.tensor(rates, dtype=at_least_float32(dtype)).view(-1, 1).to(noise.device, non_blocking=True)
    return (noise >= rate) / (1 - rate)


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """Return x + scale * branch in the dtype of x.

    Args:
        x, branch: (B, *sides, C).
        scale: (B,), or None for 1.
    """
    if scale is None:
        return x + branch
    return (x + branch * scale.view(-1, *(1 for _ in x.shape[1:]))).to(x.dtype)


class Residual(nn.Module):
    """`add_branch` as a module, so that a forward hook sees both a branch and the map that it is added to."""

    def forward(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        return add_branch(x, branch, scale)
