"""Anchors: boxes of fixed sizes and shapes around every position of a feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(side: float, ratios: Sequence[float]) -> Tensor:
    """Return the anchors of the position (0, 0), float32 (A, 4), all of the area side * side.

    Args:
        ratios: height divided by width, for each anchor.
    """
    ratio = torch.tensor(ratios, dtype=torch.float64)
    halves = torch.stack([side / ratio.sqrt(), side * ratio.sqrt()], dim=1) / 2
    return torch.cat([-halves, halves], dim=1).float()


def anchors_of(sides: tuple[int, int], stride: int, base: Tensor) -> Tensor:
    """Return the anchors of a map of (rows, columns): (rows * columns * A, 4), by row, column, and base anchor.

    Their centers are the upper left corners of the cells, at (column * stride, row * stride), as in mmdetection.

    Args:
        stride: pixels per position.
        base: (A, 4), see `base_anchors`; decides dtype and device.
    """
    rows, columns = (torch.arange(side, device=base.device, dtype=base.dtype) * stride for side in sides)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack([x, y, x, y], dim=2)[:, :, None] + base).view(-1, 4)


def usable(anchors: Tensor, size: Tensor, *, outside: bool) -> Tensor:
    """Return which anchors a training image of (height, width) uses: (A, 4) -> (A,) bool.

    Args:
        outside: True for all anchors with their center in the image, False for those that are entirely inside of it.
    """
    height, width = size
    left, top, right, bottom = anchors.unbind(1)
    if outside:
        return (left + right < 2 * width) & (top + bottom < 2 * height)
    return (left >= 0) & (top >= 0) & (right < width) & (bottom < height)
