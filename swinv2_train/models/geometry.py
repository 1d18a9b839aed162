"""Geometry of shifted windows: partition, regions of the shift mask, coordinates and layout of the position bias.

Everything here follows from a few integers, so nothing of it is a parameter or a buffer: a checkpoint fits any window,
and `module.bfloat16()` cannot round a coordinate. Tables are kept in small bounded caches and shared by all blocks that
ask for the same one.

Shape legend: B images; Hp, Wp token map padded to whole windows; nW windows of an image; wh, ww sides of a window;
N = wh * ww tokens of a window; h heads; d channels of a head; P = 2wh - 1, Q = 2ww - 1 offsets along the two sides.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Window = tuple[int, int]

MASK_VALUE = -100.0
"""Added to the score of a pair of tokens from different regions. Not -inf: official weights were trained with this."""


class TensorCache:
    """The last few tensors made from hashable keys; the least recently used one goes first."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Tensor]) -> Tensor:
        """The tensor of `key`, built when it is not here."""
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        # A tensor made under inference_mode could never be saved for a backward pass later on.
        with torch.inference_mode(False), torch.no_grad():
            tensor = build()
        if type(tensor) is Tensor:  # not a fake or functional tensor of a tracer, which must not outlive its trace
            self.entries[key] = tensor
            if len(self.entries) > self.max_entries:
                self.entries.popitem(last=False)
        return tensor


COORDINATES = TensorCache(max_entries=32)
REGIONS = TensorCache(max_entries=64)


@torch.compiler.assume_constant_result
def relative_coordinates(window: Window, pretrained: Window, device: torch.device) -> Tensor:
    """Log-spaced offsets between the tokens of a window, the input of the bias network, by the official code's formula.

    Offsets are divided by those of the pretraining window, scaled to [-8, 8] and mapped to
    sign(x) * log2(|x| + 1) / log2(8). (Equation 4 of the paper has the logarithm alone.)

    Args:
        pretrained: window the weights were trained with; a side of 0 stands for the side of `window`.

    Returns:
        (P * Q, 2) float32: (row, column) offset, row-major.
    """

    def build() -> Tensor:
        axes = []
        for side, trained in zip(window, pretrained, strict=True):
            offsets = torch.arange(-(side - 1), side, dtype=torch.float32, device=device)
            reach = max((trained or side) - 1, 1)  # a side of one token has offset 0 only
            offsets = offsets / reach * 8
            axes.append(torch.sign(offsets) * torch.log2(torch.abs(offsets) + 1.0) / math.log2(8))
        return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 1)

    return COORDINATES.get((window, pretrained, device), build)


@torch.compiler.assume_constant_result
def window_regions(padded: tuple[int, int], window: Window, shift: tuple[int, int], device: torch.device) -> Tensor:
    """Which of the nine regions of the rolled map each token of each window comes from.

    Two tokens of a window attend to each other freely where their regions are equal; see `region_mask`.

    Returns:
        (nW, N) uint8.
    """

    def build() -> Tensor:
        axes = []
        for side, extent, offset in zip(padded, window, shift, strict=True):
            place = torch.arange(side, device=device)
            regions = (place >= side - extent).int() + (place >= side - offset).int()
            axes.append(regions if offset else torch.zeros_like(regions))
        regions = (axes[0][:, None] * 3 + axes[1]).to(torch.uint8)
        rows, columns = padded[0] // window[0], padded[1] // window[1]
        return regions.view(rows, window[0], columns, window[1]).transpose(1, 2).reshape(rows * columns, -1)

    return REGIONS.get((padded, window, shift, device), build)


def region_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., q) and (..., k) regions -> (..., q, k) bool, True where the pair must not attend."""
    return queries.unsqueeze(-1) != keys.unsqueeze(-2)


def to_windows(x: Tensor, window: Window, parts: int, heads: int) -> Tensor:
    """(B, Hp, Wp, parts * h * d) -> (parts, B, nW, h, N, d), one copy."""
    b, hp, wp, _ = x.shape
    wh, ww = window
    x = x.reshape(b, hp // wh, wh, wp // ww, ww, parts, heads, -1)
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)
    return x.reshape(parts, b, (hp // wh) * (wp // ww), heads, wh * ww, -1)


def from_windows(x: Tensor, window: Window, padded: tuple[int, int]) -> Tensor:
    """(parts, B, nW, h, N, d) -> (B, Hp, Wp, parts * h * d), the inverse of `to_windows`."""
    parts, b, _, heads, _, _ = x.shape
    wh, ww = window
    x = x.reshape(parts, b, padded[0] // wh, padded[1] // ww, heads, wh, ww, -1)
    return x.permute(1, 2, 5, 3, 6, 0, 4, 7).reshape(b, *padded, -1)


def expand_bias(table: Tensor, window: Window, rows: tuple[int, int] | None = None) -> Tensor:
    """Spread the bias of every offset over all pairs of tokens of a window.

    Args:
        table: (h, P, Q); the entry for query (i, j) and key (k, l) is at (i - k + wh - 1, j - l + ww - 1).
        rows: make only the queries of these window rows, from the first up to, not including, the second.

    Returns:
        (h, q, N) with q = N, or (rows[1] - rows[0]) * ww. Differentiable; the gradient is summed in a fixed order.
    """
    wh, ww = window
    first, last = rows or (0, wh)
    # Sliding views along both sides give entry (i + c, j + d); counting keys backwards makes c = wh - 1 - k.
    by_column = table[:, first : last + wh - 1].unfold(2, ww, 1).flip(-1)  # (h, rows, j, l)
    by_row = by_column.unfold(1, wh, 1)  # (h, i, j, l, c)
    return by_row.permute(0, 1, 2, 4, 3).flip(3).reshape(table.shape[0], (last - first) * ww, wh * ww)


def collapse_bias(gradient: Tensor, window: Window) -> Tensor:
    """The adjoint of `expand_bias`: sum the gradient of a bias over all pairs of tokens with the same offset.

    Args:
        gradient: (h, r * ww, N), for r successive rows of queries.

    Returns:
        (h, r + wh - 1, Q): the gradient of the rows of the table that those queries use.
    """
    wh, ww = window
    rows = gradient.shape[1] // ww
    pairs = gradient.view(-1, rows, ww, wh, ww).flip(3, 4).permute(0, 1, 3, 2, 4)  # (h, i, c, j, d)
    by_row = gradient.new_zeros(pairs.shape[0], rows + wh - 1, ww, ww)
    for row in range(rows):
        by_row[:, row : row + wh] += pairs[:, row]
    table = gradient.new_zeros(pairs.shape[0], rows + wh - 1, 2 * ww - 1)
    for column in range(ww):
        table[:, :, column : column + ww] += by_row[:, :, column]
    return table
