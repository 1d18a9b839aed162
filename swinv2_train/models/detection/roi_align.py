"""RoIAlign (arXiv 1703.06870) with gradients that are the same in every run on CUDA.

torchvision's CUDA kernel adds up the gradients of overlapping boxes by atomic operations, in any order, so a resumed
run would not repeat the original one. The mean of bilinear samples is separable: for a box, channel c, and cell (p, q),
it is the sum of rows[p, y] * map[c, y, x] * columns[q, x]. So here the gradients are matrix products of these weights,
which sum in the same order every time. On a CPU, torchvision adds in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from swinv2_train.models.precision import without_autocast

_TOGETHER = 16
"""Boxes whose gradients are multiplied at a time: the products need 84 MiB for 14 x 14 cells and 256 channels on a map
of 384 columns."""


def roi_align(level: Tensor, rois: Tensor, side: int, stride: int) -> Tensor:
    """Return the features of boxes, (B, C, H, W) -> (R, C, side, side), with an adaptive number of samples per cell.

    Args:
        level: at least float32.
        rois: (R, 5) of the same dtype: image and box in pixels; boxes have no gradients.
        stride: pixels per position of the map.
    """
    with without_autocast(level):
        if level.is_cuda:
            return RepeatableRoiAlign.apply(level, rois, side, stride)
        return _forward(level, rois, side, stride)


class RepeatableRoiAlign(torch.autograd.Function):
    """torchvision's RoIAlign forward, and matrix products backward, on any device."""

    @staticmethod
    def forward(ctx: Any, level: Tensor, rois: Tensor, side: int, stride: int) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.stride = level.shape, stride
        return _forward(level, rois, side, stride)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (rois,) = ctx.saved_tensors
        with without_autocast(gradient):
            return map_gradient(gradient, rois, ctx.shape, ctx.stride), None, None, None


def map_gradient(gradient: Tensor, rois: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """Return the gradient of a map of shape (B, C, H, W) for the gradient (R, C, side, side) of its boxes.

    A fixed number of boxes is multiplied at a time, so memory does not depend on their number.
    """
    batch, channels, height, width = shape
    side, total = gradient.shape[-1], gradient.new_zeros(batch, height, channels * width)
    for image in range(batch):
        places = (rois[:, 0] == image).nonzero().flatten()
        for some in places.split(_TOGETHER):
            # Multiplied as in torchvision: a division may round a side to another number of samples.
            boxes = rois[some, 1:] * (1 / stride) - 0.5
            rows = axis_weights(boxes[:, 1], boxes[:, 3], side, height)
            columns = axis_weights(boxes[:, 0], boxes[:, 2], side, width)
            spread = gradient[some].transpose(1, 2).flatten(1, 2) @ columns  # (boxes, side * C, W)
            total[image].addmm_(rows.flatten(0, 1).T, spread.view(len(some) * side, channels * width))
    return total.view(batch, height, channels, width).transpose(1, 2)


def axis_weights(low: Tensor, high: Tensor, cells: int, length: int) -> Tensor:
    """Return the weights of the positions of one axis of a map in the cells of boxes: (R,), (R,) -> (R, cells, length).

    Args:
        low, high: sides of the boxes in units of positions, 0 at the center of the first. The weights of boxes that
            are not finite are NaN.
    """
    size = (high - low) / cells
    samples = size.ceil()
    offset = low[:, None] + torch.arange(cells, dtype=low.dtype, device=low.device) * size[:, None]
    step = (size / samples.clamp(min=1))[:, None]
    positions = torch.arange(length, dtype=low.dtype, device=low.device)
    weights = low.new_zeros(len(low), cells, length)
    finite = samples.isfinite()
    most = int(samples[finite].max()) if finite.any() else 0
    for number in range(most):
        place = offset + (number + 0.5) * step
        used = (number < samples)[:, None] & (place >= -1) & (place <= length)  # others count as 0
        tents = (1 - (place.clamp(0, length - 1)[:, :, None] - positions).abs()).clamp(min=0)
        weights = weights + tents * used[:, :, None]
    weights = weights / samples.clamp(min=1)[:, None, None]
    return torch.where(finite[:, None, None], weights, torch.nan)


def _forward(level: Tensor, rois: Tensor, side: int, stride: int) -> Tensor:
    return torchvision_roi_align(level, rois, side, 1 / stride, 0, aligned=True)
