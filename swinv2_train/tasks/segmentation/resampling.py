"""Bilinear resizing of a part of a map, with the coordinates of the whole: parts fit together without a seam.

Over an entire map, both functions agree with torch's `interpolate(..., mode="bilinear", align_corners=False)`, the one
for images with `antialias=True`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """A part of a resized axis."""

    source: int
    """Length of the source."""
    length: int
    """Length of the entire result."""
    first: int
    """First element of the part of the result."""
    count: int
    """Number of its elements."""
    scale: float | None = None
    """Source elements per element of the result; None: source / length."""
    offset: float = 0.0
    """Place of the source's first element, in source elements from the beginning of the result."""

    def centers(self) -> Tensor:
        """Return where the elements of the part lie in the source, (count,) float64: 0.5 is the middle of the first."""
        scale = self.source / self.length if self.scale is None else self.scale
        wanted = torch.arange(self.first, self.first + self.count, dtype=torch.float64) + 0.5
        return wanted * scale - self.offset

    def neighbors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the two source elements next to each element, (count,) int64 each, and the share of the second."""
        place = (self.centers() - 0.5).clamp(0, self.source - 1)
        low = place.floor().long()
        return low, (low + 1).clamp_max(self.source - 1), (place - low).to(torch.float32)

    def neighbors_range(self) -> tuple[int, int]:
        """Return the range of the source elements among `neighbors`, as [first, end)."""
        low, high, _ = self.neighbors()
        return int(low[0]), int(high[-1]) + 1

    def filter(self) -> tuple[int, Tensor]:
        """Return the antialiasing filter: (first source element, (count, number of source elements) float32)."""
        scale = self.source / self.length if self.scale is None else self.scale
        reach = max(1.0, scale)
        centers = self.centers()
        low = int((centers[0] - reach + 0.5).clamp_min(0))
        end = int((centers[-1] + reach + 0.5).clamp_max(self.source))
        places = torch.arange(low, end, dtype=torch.float64) + 0.5
        weights = (1 - (places - centers[:, None]).abs() / reach).clamp_min(0)
        return low, (weights / weights.sum(dim=1, keepdim=True)).to(torch.float32)


def enlarged(rows: Tensor, vertical: Axis, horizontal: Axis, low: int) -> Tensor:
    """Return a part of a resized map, (K, rows of its `neighbors`, W) -> (K, vertical.count, horizontal.count).

    Args:
        low: number of the first row in the source.
    """
    device = rows.device
    upper, lower, share = (each.to(device) for each in vertical.neighbors())
    share = share[:, None]
    mixed = torch.lerp(rows[:, upper - low], rows[:, lower - low], share)
    left, right, share = (each.to(device) for each in horizontal.neighbors())
    return torch.lerp(mixed[:, :, left], mixed[:, :, right], share)


def reduced_part(read: Callable[[int, int, int, int], Tensor], vertical: Axis, horizontal: Axis) -> Tensor:
    """Return a part of a resized image, antialiased, (C, vertical.count, horizontal.count) float32.

    Args:
        read: returns a part of the image: top, left, height, width -> (C, height, width) float32.
    """
    (top, down), (left, across) = vertical.filter(), horizontal.filter()
    part = read(top, left, down.shape[1], across.shape[1])
    return down.to(part.device) @ (part @ across.to(part.device).T)
