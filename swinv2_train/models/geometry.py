"""Geometry of shifted windows: partition, regions of the shift mask, coordinates and layout of the position bias.

Everything here follows from a few integers, so nothing of it is a parameter or a buffer: a checkpoint fits any window,
and `module.bfloat16()` cannot round a coordinate. What is made is kept in small bounded caches and shared by all blocks
that ask for the same. (A table of biases is a parameter of its attention; `resize_table` fits it to a window.)

Shape legend: B images; Hp, Wp token map padded to whole windows; nW windows of an image; wh, ww sides of a window;
N = wh * ww tokens of a window; h heads; d channels of a head; P = 2wh - 1, Q = 2ww - 1 offsets along the two sides.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
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
RESIZINGS = TensorCache(max_entries=32)
REGIONS = TensorCache(max_entries=64)


@torch.compiler.assume_constant_result
def relative_coordinates(
    window: Window, pretrained: Window, device: torch.device, *, logarithmic: bool = True
) -> Tensor:
    """Offsets between the tokens of a window as the bias network takes them, by the official code's formulas.

    Offsets are divided by the largest one of the pretraining window. For linear-CPB that is all: they span [-1, 1] at
    the window of the pretraining and [-2.1, 2.1] from window 8 to 16. For log-CPB they are then scaled to [-8, 8] and
    mapped to sign(x) * log2(|x| + 1) / log2(8), which spans [-1.06, 1.06] and [-1.4, 1.4]. (The paper has the plain
    offsets and, in equation 4, the logarithm alone; a constant factor on them is one on the first layer's weights. With
    these factors both kinds begin with inputs of one size, and what differs is how far a larger window extrapolates.)

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
            offsets = offsets / reach
            if logarithmic:
                offsets = offsets * 8
                offsets = torch.sign(offsets) * torch.log2(torch.abs(offsets) + 1.0) / math.log2(8)
            axes.append(offsets)
        return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 1)

    return COORDINATES.get((window, pretrained, device, logarithmic), build)


@torch.compiler.assume_constant_result
def resizing_matrix(size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What bicubic interpolation (`align_corners=False`) of one axis multiplies with: (new_size, size)."""

    def build() -> Tensor:
        identity = torch.eye(size, dtype=dtype, device=device)
        return F.interpolate(identity[None, None], size=(new_size, size), mode="bicubic", align_corners=False)[0, 0]

    return RESIZINGS.get((size, new_size, dtype, device), build)


def resize_table(table: Tensor, window: Window) -> Tensor:
    """A table of position biases for another window, by bicubic interpolation over the offsets (official code).

    Written as two matrix products: `interpolate` sums its gradient in no fixed order on CUDA.

    Args:
        table: (h, P', Q') of the window it was trained with.

    Returns:
        (h, P, Q) of `window`; the table itself where that is its own window.
    """
    for axis, side in zip((1, 2), window, strict=True):
        size, new_size = table.shape[axis], 2 * side - 1
        if size != new_size:
            matrix = resizing_matrix(size, new_size, table.dtype, table.device)
            table = matrix @ table if axis == 1 else table @ matrix.t()
    return table


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
    """(B, Hp, Wp, parts * h * d) -> (parts, B, nW, h, N, d): at most one copy, and a view for some one-token sides.

    Do not write into the result, and do not assume that it is contiguous.
    """
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
