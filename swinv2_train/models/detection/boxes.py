"""Arithmetic of boxes: left, top, right, bottom in pixels, at least float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_STEP = math.log(1000 / 16)
"""Largest change of the logarithm of a side by an offset (Faster R-CNN)."""


def areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...); 0 for a box without area."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersections(ones: Tensor, others: Tensor) -> Tensor:
    """Return the common area of every pair: (N, 4), (M, 4) -> (N, M)."""
    return _common(ones, others, 0) * _common(ones, others, 1)


def overlaps(ones: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of every pair, (N, 4), (M, 4) -> (N, M); 0 for boxes without area."""
    common = intersections(ones, others)
    union = areas(ones)[:, None] + areas(others)[None] - common
    return common / union.clamp(min=torch.finfo(union.dtype).tiny)  # 0 without a union


def clip(boxes: Tensor, size: Sequence[float] | Tensor) -> Tensor:
    """Move the corners of boxes (..., 4) into an image of (height, width)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def encode(boxes: Tensor, targets: Tensor, deviations: Sequence[float]) -> Tensor:
    """Return the offsets from boxes to targets, divided by their standard deviations: (N, 4), (N, 4) -> (N, 4).

    Offsets are those of R-CNN: of the center, relative to the sides, and the logarithms of the ratios of the sides.
    """
    sides, wanted = _sides(boxes), _sides(targets)
    offsets = torch.cat([(_centers(targets) - _centers(boxes)) / sides, (wanted / sides).log()], dim=1)
    return offsets / offsets.new_tensor(deviations)


def decode(boxes: Tensor, offsets: Tensor, deviations: Sequence[float]) -> Tensor:
    """Return the boxes at offsets from boxes, the inverse of `encode`: (..., 4), (..., 4) -> (..., 4).

    A side changes at most by a factor of 62.5.
    """
    offsets = offsets * offsets.new_tensor(deviations)
    sides = _sides(boxes)
    centers = _centers(boxes) + offsets[..., :2] * sides
    halves = sides * offsets[..., 2:].clamp(-LARGEST_STEP, LARGEST_STEP).exp() / 2
    return torch.cat([centers - halves, centers + halves], dim=-1)


def _common(ones: Tensor, others: Tensor, axis: int) -> Tensor:
    """Return the common length of every pair along x (0) or y (1): (N, M)."""
    low = torch.maximum(ones[:, None, axis], others[None, :, axis])
    return (torch.minimum(ones[:, None, axis + 2], others[None, :, axis + 2]) - low).clamp(min=0)


def _sides(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
