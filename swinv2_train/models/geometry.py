"""Window geometry: partition, shift-mask regions, coordinates, and layout of the position bias.

All functions accept windows with any number of axes: (height, width) for images, (time, height, width) for clips. Their
results depend only on a few integers, so none is a parameter or a buffer: a checkpoint fits any window, and
`module.bfloat16()` cannot round a coordinate. Results are kept in small bounded caches and shared by all blocks that
request the same ones. (A bias table is a parameter of its attention module; `resize_table` fits it to a window.)

Shape legend: B samples; `padded` the sides of a token map padded to whole windows; nW windows of a sample; N tokens of
a window; h heads; d channels of a head; `offsets` along each axis the 2w - 1 distances of two tokens of a window of
side w.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Window = tuple[int, ...]
"""Tokens per axis: (height, width), or (time, height, width). Also used for shifts."""
Span = tuple[int, int]
"""A range of indices along one axis: first and end (exclusive)."""

MASK_VALUE = -100.0
"""Added to the score of a pair of tokens from different regions of an image. Not -inf: official weights were trained
with this."""
_PLACES = 9
"""Regions of the height and the width together; a region is its part of the time axis times this, plus its place."""
_PADDING = 3
"""Part of the time axis of padding tokens, after the three parts of a rolled map."""


_Function = TypeVar("_Function", bound=Callable)


class TensorCache:
    """The most recently used tensors by hashable key; the least recently used one is dropped first."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of `key`; build it if it is not in the cache."""
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        # A tensor created under inference_mode could never be saved for a backward pass later.
        with torch.inference_mode(False), torch.no_grad():
            tensor = build()
        if type(tensor) is Tensor:  # not a fake or functional tensor of a tracer, which must not outlive its trace
            self.entries[key] = tensor
            if len(self.entries) > self.max_entries:
                self.entries.popitem(last=False)
        return tensor


def _constant_when_compiled(function: _Function) -> _Function:
    """Do what `torch.compiler.assume_constant_result` does, which imports the compiler first: 3 s in every process."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


COORDINATES = TensorCache(max_entries=32)
RESIZINGS = TensorCache(max_entries=32)
REGIONS = TensorCache(max_entries=256)  # images of many sizes: one per map, window, and shift


@_constant_when_compiled
def relative_coordinates(
    window: Window, pretrained: Window, device: torch.device, *, logarithmic: bool = True
) -> Tensor:
    """Return the offsets between the tokens of a window as inputs of the bias network, by the official code's formulas.

    Offsets are divided by the largest offset of the pretraining window. For linear-CPB nothing else is done: they span
    [-1, 1] at the pretraining window and [-2.1, 2.1] from window 8 to 16. For log-CPB they are then scaled to [-8, 8]
    and mapped to sign(x) * log2(|x| + 1) / log2(8), which spans [-1.06, 1.06] and [-1.4, 1.4]. (The paper uses the
    plain offsets and, in equation 4, only the logarithm; a constant factor on them is equivalent to one on the first
    layer's weights. With these factors, the inputs of both kinds start at the same size and differ only in how far a
    larger window extrapolates.)

    Args:
        pretrained: window the weights were trained with; a side of 0 means the side of `window`.

    Returns:
        (product of `offsets`, axes) float32: one offset per axis, the last axis changing fastest.
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
        return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, -2)

    return COORDINATES.get((window, pretrained, device, logarithmic), build)


@_constant_when_compiled
def resizing_matrix(size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return bicubic interpolation (`align_corners=False`) of one axis as a matrix: (new_size, size)."""

    def build() -> Tensor:
        identity = torch.eye(size, dtype=dtype, device=device)
        return F.interpolate(identity[None, None], size=(new_size, size), mode="bicubic", align_corners=False)[0, 0]

    return RESIZINGS.get((size, new_size, dtype, device), build)


def resize_table(table: Tensor, window: Window) -> Tensor:
    """Fit a table of position biases to another window, by bicubic interpolation over the offsets (official code).

    Written as one matrix product per axis: `interpolate` sums its gradient in no fixed order on CUDA.

    Args:
        table: (h, *offsets) of the window it was trained with.

    Returns:
        (h, *offsets) of `window`; the table itself if the window is unchanged.
    """
    for axis, side in enumerate(window, 1):
        size, new_size = table.shape[axis], 2 * side - 1
        if size != new_size:
            matrix = resizing_matrix(size, new_size, table.dtype, table.device)
            if axis == len(window):
                table = table @ matrix.t()
            else:  # three dimensions for any number of axes: another axis of size 1 then changes no bit
                rest = table.shape[axis + 1 :]
                resized = matrix @ table.reshape(-1, size, math.prod(rest))
                table = resized.reshape(*table.shape[:axis], new_size, *rest)
    return table


@_constant_when_compiled
def window_regions(
    padded: Window, window: Window, shift: Window, device: torch.device, time_padding: int = 0
) -> Tensor:
    """Return the region of the rolled map that each token of each window comes from: one of three per axis.

    Two tokens of a window attend to each other freely if their regions are equal; see `score_mask`.

    Args:
        time_padding: padding tokens at the end of the time axis, before the roll; they are one more part of that axis.

    Returns:
        (nW, N) uint8.
    """

    def build() -> Tensor:
        regions = torch.zeros((), dtype=torch.int32, device=device)
        for axis, (side, extent, offset) in enumerate(zip(padded, window, shift, strict=True)):
            place = torch.arange(side, device=device)
            along = (place >= side - extent).int() + (place >= side - offset).int()
            along = along if offset else torch.zeros_like(along)
            if axis == 0 and time_padding:
                before_roll = (place + offset) % side
                along = along.masked_fill(before_roll >= side - time_padding, _PADDING)
            regions = regions.unsqueeze(-1) * 3 + along
        return to_windows(regions.to(torch.uint8)[None, ..., None], window, 1, 1).reshape(-1, math.prod(window))

    return REGIONS.get((padded, window, shift, device, time_padding), build)


def map_regions(x: Tensor, window: Window, shift: Window, time_padding: int = 0) -> Tensor | None:
    """Return the regions of a (B, *padded, C) map that is rolled by `shift`; None if all tokens attend to each other.

    Args:
        time_padding: see `window_regions`.
    """
    if not any(shift) and not time_padding:
        return None
    return window_regions(tuple(x.shape[1:-1]), window, shift, x.device, time_padding)


def region_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., q) and (..., k) regions -> (..., q, k) bool, True if the score of the pair gets `MASK_VALUE` added."""
    return queries.unsqueeze(-1) != keys.unsqueeze(-2)


def time_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., q) and (..., k) regions of clips -> (..., q, k) bool, True if the pair must not attend at all.

    -100 leaves a small part of a masked token. In a still clip, with a shift in space and in time, a window contains
    such tokens several times, so its features would not be those of the image. Every token has its own region, so no
    row is masked throughout.
    """
    return region_mask(queries // _PLACES, keys // _PLACES)


def score_mask(regions: Tensor, axes: int) -> Tensor:
    """Return the mask to add to the scores between the tokens of each window: (nW, N) regions -> (nW, N, N) float32.

    Args:
        axes: of the window; the first of three is the time.
    """
    mask = region_mask(regions, regions) * MASK_VALUE
    return mask.masked_fill_(time_mask(regions, regions), -math.inf) if axes > 2 else mask


def to_windows(x: Tensor, window: Window, parts: int, heads: int) -> Tensor:
    """(B, *padded, parts * h * d) -> (parts, B, nW, h, N, d): at most one copy, and a view for some one-token sides.

    Do not write into the result, and do not assume that it is contiguous.
    """
    b, *padded, _ = x.shape
    axes = len(window)
    split = [size for side, extent in zip(padded, window, strict=True) for size in (side // extent, extent)]
    x = x.reshape(b, *split, parts, heads, -1)
    counts, extents = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    x = x.permute(2 * axes + 1, 0, *counts, 2 * axes + 2, *extents, 2 * axes + 3)
    return x.reshape(parts, b, math.prod(split[::2]), heads, math.prod(window), -1)


def from_windows(x: Tensor, window: Window, padded: Window) -> Tensor:
    """(parts, B, nW, h, N, d) -> (B, *padded, parts * h * d), the inverse of `to_windows`."""
    parts, b, _, heads, _, _ = x.shape
    axes = len(window)
    counts = [side // extent for side, extent in zip(padded, window, strict=True)]
    x = x.reshape(parts, b, *counts, heads, *window, -1)
    pairs = [axis for pair in zip(range(2, axes + 2), range(axes + 3, 2 * axes + 3), strict=True) for axis in pair]
    return x.permute(1, *pairs, 0, axes + 2, 2 * axes + 3).reshape(b, *padded, -1)


def expand_bias(table: Tensor, window: Window, queries: tuple[Span, ...] | None = None) -> Tensor:
    """Spread the bias of every offset over all pairs of tokens of a window.

    Args:
        table: (h, *offsets); along each axis, the entry for query i and key k is at i - k + side - 1.
        queries: return only the queries of this box, one span per axis of the window.

    Returns:
        (h, q, N) for the q tokens of the box. Differentiable; the gradient is summed in a fixed order.
    """
    queries, axes = queries or tuple((0, side) for side in window), len(window)
    views = table[(slice(None), *offset_slices(window, queries))]
    # Sliding views give entry i + c along each axis; counting keys backward makes c = side - 1 - k. Unfolding the last
    # axis first fixes the order in which the backward pass sums: over the first axis, then over the next ones. Its flip
    # copies little here, and lets the copy of all pairs below read consecutive numbers.
    views = views.unfold(axes, window[-1], 1).flip(-1)
    for axis in range(axes - 1, 0, -1):
        views = views.unfold(axis, window[axis - 1], 1)  # (h, i1 .. in, kn, cn-1 .. c1)
    keys = range(axes + 1, 2 * axes + 1)
    pairs = views.permute(*range(axes + 1), *reversed(keys)).flip(tuple(keys[:-1]))
    return pairs.reshape(table.shape[0], math.prod([b - a for a, b in queries]), math.prod(window))


def offset_slices(window: Window, queries: tuple[Span, ...]) -> tuple[slice, ...]:
    """Return the part of a table of offsets that a box of queries uses, one slice per axis."""
    return tuple(slice(first, last + side - 1) for (first, last), side in zip(queries, window, strict=True))


def collapse_bias(gradient: Tensor, window: Window, box: Window | None = None) -> Tensor:
    """Sum the gradient of a bias over all pairs of tokens with the same offset: the adjoint of `expand_bias`.

    Args:
        gradient: (h, q, N), for the q tokens of a box of queries.
        box: sides of that box; None: the entire window.

    Returns:
        (h, ...), with side of the box + side of the window - 1 entries along each axis: the gradient of the part of the
        table that those queries use, see `offset_slices`.
    """
    box, axes = box or window, len(window)
    pairs = gradient.view(-1, *box, *window).flip(tuple(range(axes + 1, 2 * axes + 1)))
    order = [axis for pair in zip(range(1, axes + 1), range(axes + 1, 2 * axes + 1), strict=True) for axis in pair]
    sums = pairs.permute(0, *order)  # (h, i1, c1, i2, c2, ...)
    del pairs
    for axis in range(1, axes + 1):
        sums = _add_diagonals(sums, axis)
    return sums


def _add_diagonals(x: Tensor, axis: int) -> Tensor:
    """(..., i, c, ...) -> (..., i + c, ...): sum the diagonals of two adjacent axes, of which `axis` is the first."""
    rows, columns = x.shape[axis], x.shape[axis + 1]
    sums = x.new_zeros(*x.shape[:axis], rows + columns - 1, *x.shape[axis + 2 :])
    for row in range(rows):
        sums.narrow(axis, row, columns).add_(x.select(axis, row))
    return sums
