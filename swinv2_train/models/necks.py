"""Parts of dense decoders: convolution with norm, feature pyramid, pyramid pooling. Maps are (B, C, H, W).

Norms are GroupNorms (arXiv 1803.08494). A BatchNorm would make the loss of a sample depend on its neighbors in the
micro-batch, and thereby on the number of ranks and on the accumulation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.models.precision import at_least_float32, without_autocast
from swinv2_train.models.resizing import adaptive_pool, resize

_MOST_GROUPS = 32
_FEWEST_CHANNELS = 8
"""Channels of a group at least: a group of one channel on a map of one position would always be 0 after the norm."""


def group_count(channels: int) -> int:
    """Return the number of groups of a GroupNorm: the largest divisor up to 32 with at least 8 channels per group."""
    most = max(1, min(_MOST_GROUPS, channels // _FEWEST_CHANNELS))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class GroupNorm(nn.GroupNorm):
    """GroupNorm with `group_count` groups, computed in at least float32; returns the dtype of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__(group_count(channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        with without_autocast(input):
            # torch's kernels keep the statistics of half-precision inputs in half precision.
            wide = at_least_float32(input.dtype)
            x, weight, bias = (tensor.to(wide) for tensor in (input, self.weight, self.bias))
            return F.group_norm(x, self.num_groups, weight, bias, self.eps).to(input.dtype)


class ConvNormAct(nn.Module):
    """Convolution without bias, GroupNorm, ReLU: (B, in_channels, H, W) -> (B, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = GroupNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class FeaturePyramid(nn.Module):
    """Feature pyramid (arXiv 1612.03144): 1x1 laterals, sums from the top down, 3x3 convolutions on all but the top.

    Each map has half the size of the one before, rounded up; what a map that was rounded up has in excess is cut off.

    Args:
        dims: channels of the maps below the top, from the largest map on.
        channels: channels of the top and of all results.
    """

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvNormAct(dim, channels, 1) for dim in dims)
        self.outputs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in dims)

    def forward(self, maps: Sequence[Tensor], top: Tensor) -> list[Tensor]:
        """Return the levels (B, channels, H_i, W_i), from the largest to the top, which is returned as it is."""
        sums = [top]
        for lateral, x in zip(reversed(self.laterals), reversed(maps), strict=True):
            x = lateral(x)
            sums.insert(0, x + resize(sums[0], (x.shape[2], x.shape[3]), scale=2))
        return [*(output(x) for output, x in zip(self.outputs, sums[:-1], strict=True)), top]


def at_largest(levels: Sequence[Tensor]) -> list[Tensor]:
    """Return the levels of a feature pyramid, all resized to the size of the first."""
    size = (levels[0].shape[2], levels[0].shape[3])
    return [resize(level, size, scale=2**number) for number, level in enumerate(levels)]


class PyramidPooling(nn.Module):
    """Pyramid pooling (PSPNet, arXiv 1612.01105): averages over grids of several sizes, joined with their input.

    Args:
        sides: cells per side of each grid.
    """

    def __init__(self, dim: int, channels: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)
        self.branches = nn.ModuleList(ConvNormAct(dim, channels, 1) for _ in sides)
        self.fusion = ConvNormAct(dim + len(self.sides) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, channels, H, W)."""
        size = (x.shape[2], x.shape[3])
        pooled = [
            resize(branch(adaptive_pool(x, side)), size) for side, branch in zip(self.sides, self.branches, strict=True)
        ]
        return self.fusion(torch.cat([x, *pooled], dim=1))
