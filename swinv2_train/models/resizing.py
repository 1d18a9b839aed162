"""Bilinear resizing and adaptive average pooling of maps as matrix products, one per axis.

On CUDA, the gradients of `F.interpolate` and of `F.adaptive_avg_pool2d` are summed in no fixed order, so a resumed run
would not repeat the original one. A matrix product sums in the same order every time. Half precision rounds the
matrices too; the weights of a factor that is a power of two are exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swinv2_train.models.geometry import Span, TensorCache

_MATRICES = TensorCache(max_entries=128)


def corner_matrix(size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return bilinear interpolation of one axis with `align_corners=True`, whose ends stay: (new_size, size)."""

    def build() -> Tensor:
        place = torch.linspace(0, size - 1 if new_size > 1 else 0, new_size, dtype=torch.float64)
        return _tents(place, size).to(dtype).to(device)

    return _MATRICES.get(("corners", size, new_size, dtype, device), build)


def _tents(place: Tensor, size: int) -> Tensor:
    """Return the weights of the old positions at real places: (new_size,) -> (new_size, size)."""
    return (1 - (place[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0)


def bilinear_matrix(size: int, new_size: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return bilinear interpolation of one axis (`align_corners=False`): (new_size, size).

    Args:
        scale: new positions per old one; new position i is at (i + 0.5) / scale - 0.5. Positions beyond the last old
            one take its value.
    """

    def build() -> Tensor:
        place = ((torch.arange(new_size, dtype=torch.float64) + 0.5) / scale - 0.5).clamp(0, size - 1)
        return _tents(place, size).to(dtype).to(device)

    return _MATRICES.get(("bilinear", size, new_size, scale, dtype, device), build)


def pooling_matrix(size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return adaptive average pooling of one axis: (new_size, size). Cells overlap if their sides are not whole."""

    def build() -> Tensor:
        matrix = torch.zeros(new_size, size, dtype=torch.float64)
        for cell in range(new_size):
            begin, end = cell * size // new_size, -(-(cell + 1) * size // new_size)
            matrix[cell, begin:end] = 1 / (end - begin)
        return matrix.to(dtype).to(device)

    return _MATRICES.get(("pooling", size, new_size, dtype, device), build)


def resize(x: Tensor, size: tuple[int, int], scale: float | None = None) -> Tensor:
    """Resize maps by bilinear interpolation, `align_corners=False` and without antialiasing.

    Args:
        x: (B, C, H, W) float.
        size: new (height, width).
        scale: new positions per old one, for maps that were padded to whole cells: what exceeds `size` is not computed.
            None: the ratio of the sizes.

    Returns:
        (B, C, *size); x itself if nothing changes.
    """
    sides = (x.shape[2], x.shape[3])
    if size == sides and scale in (None, 1):
        return x
    return _along_both(
        x,
        *(
            bilinear_matrix(side, new, scale or new / side, x.dtype, x.device)
            for side, new in zip(sides, size, strict=True)
        ),
    )


def resize_corners(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps by bilinear interpolation with `align_corners=True`: (B, C, H, W) -> (B, C, *size)."""
    sides = (x.shape[2], x.shape[3])
    if size == sides:
        return x
    return _along_both(x, *(corner_matrix(side, new, x.dtype, x.device) for side, new in zip(sides, size, strict=True)))


def adaptive_pool(x: Tensor, side: int) -> Tensor:
    """Return (B, C, H, W) averaged over side x side cells, as `F.adaptive_avg_pool2d`: (B, C, side, side)."""
    return _along_both(x, *(pooling_matrix(x.shape[axis], side, x.dtype, x.device) for axis in (2, 3)))


def enlarge_logits(logits: Tensor, size: tuple[int, int], stride: int, rows: Span | None = None) -> Tensor:
    """Resize the logits of a model to the size of its images.

    Args:
        logits: (B, K, ceil(H / stride), ceil(W / stride)).
        size: (H, W) of the images, which may be no multiple of the stride.
        stride: pixels per position of the logits.
        rows: compute only these rows of the result, first and end (exclusive); None: all.

    Returns:
        (B, K, H, W), or the rows of it.
    """
    first, end = rows or (0, size[0])
    top = max(math.floor((first + 0.5) / stride - 0.5), 0)
    bottom = min(math.floor((end - 0.5) / stride - 0.5) + 2, logits.shape[2])
    height = bilinear_matrix(logits.shape[2], size[0], stride, logits.dtype, logits.device)
    width = bilinear_matrix(logits.shape[3], size[1], stride, logits.dtype, logits.device)
    return _along_both(logits[:, :, top:bottom], height[first:end, top:bottom], width)


def _along_both(x: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Apply a matrix to each axis of (B, C, H, W). The result is channels-last in memory, as the input should be."""
    channels = x.shape[1]
    x = x.movedim(1, 3)
    x = (height @ x.flatten(2)).unflatten(2, (-1, channels))
    return (width @ x).movedim(3, 1)
