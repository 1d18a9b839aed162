"""Small parts of the backbone: LayerNorm, patch embedding, patch merging, MLP.

Token maps are (B, H, W, C) or (B, T, H, W, C) throughout, so every layer but the first operates on the last dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.models.precision import at_least_float32, without_autocast


class InputError(ValueError):
    """An input that does not fit the model. `str(error)` is the entire message for the user."""


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension, computed in at least float32; returns the dtype of its input.

    torch's CUDA kernel does that without a widened copy if input and weights have the same dtype. Its CPU kernel stores
    half-precision statistics for the backward pass, so the input is widened first.

    Args:
        initial_weight: value that `init_weights` fills the weight with.
    """

    def __init__(self, dim: int, *, initial_weight: float = 1.0) -> None:
        super().__init__(dim)
        self.initial_weight = initial_weight

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        self.weight.fill_(self.initial_weight)
        self.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        with without_autocast(input):
            wide = at_least_float32(input.dtype)
            if input.dtype == self.weight.dtype and (input.is_cuda or input.dtype == wide):
                return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
            x, weight, bias = (tensor.to(wide) for tensor in (input, self.weight, self.bias))
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: (B, in_channels, H, W) -> (B, ceil(H / p), ceil(W / p), dim), or for clips
    (B, in_channels, T, H, W) -> (B, T / temporal_patch, ceil(H / p), ceil(W / p), dim).

    Images are padded with zeros at the bottom and right to whole patches. Clips are not padded in time.

    Args:
        temporal_patch: frames per patch; 0: images.
    """

    def __init__(self, in_channels: int, patch_size: int, dim: int, temporal_patch: int = 0) -> None:
        super().__init__()
        self.patch_size, self.temporal_patch = patch_size, temporal_patch
        if temporal_patch:
            patch = (temporal_patch, patch_size, patch_size)
            self.proj: nn.Module = nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch)
        else:
            self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        if self.temporal_patch and images.shape[2] % self.temporal_patch:
            raise InputError(
                f"clips of {images.shape[2]} frames: the model needs a multiple of its "
                f"temporal_patch={self.temporal_patch}"
            )
        below, right = -images.shape[-2] % self.patch_size, -images.shape[-1] % self.patch_size
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        return self.norm(self.proj(images.to(self.proj.weight.dtype)).movedim(1, -1))


class PatchMerging(nn.Module):
    """Four neighboring tokens to one: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C).

    The norm follows the reduction, unlike in Swin V1. A map of odd size is padded with zeros. A time axis before the
    height is not merged (as in Video Swin).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        below, right = x.shape[-3] % 2, x.shape[-2] % 2
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        *outer, height, width, c = x.shape
        x = x.reshape(*outer, height // 2, 2, width // 2, 2, c)
        # Neighbors in the official order: the row changes fastest, then the column.
        x = x.movedim(-4, -2).reshape(*outer, height // 2, width // 2, 4 * c)
        return self.norm(self.reduction(x))


class Mlp(nn.Module):
    """Linear, GELU, linear, on the last dimension."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def position_embedding(embedding: Tensor, built_for: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Return an absolute position embedding for a map of another size, by bicubic interpolation.

    Args:
        embedding: (1, L, C) with L = built_for[0] * built_for[1].

    Returns:
        (1, rows, columns, C), in the dtype of the embedding.
    """
    grid = embedding.unflatten(1, built_for)
    if built_for == (rows, columns):
        return grid
    wide = grid.permute(0, 3, 1, 2).to(at_least_float32(grid.dtype))
    resized = F.interpolate(wide, size=(rows, columns), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(grid.dtype)
