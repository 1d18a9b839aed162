"""Sequential window attention: the scores of a few windows and heads at a time, forward and backward.

At 1536 x 1536 pixels and window 32, the scores of one block of the first stage fill gigabytes per image. Here only a
bounded part of them exists at any moment (paper section 3.5, "sequential self-attention computation"). Stored for the
backward pass are the projected map, the result, one number per query (the logarithm of the softmax denominator), the
bias table, and the region of every token; scores, bias, and mask are recomputed chunk by chunk. Sums run in a fixed
order, so every run produces the same gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2_train.models.attention.contract import AttentionOptions
from swinv2_train.models.geometry import (
    MASK_VALUE,
    Span,
    Window,
    collapse_bias,
    expand_bias,
    from_windows,
    map_regions,
    offset_slices,
    region_mask,
    time_mask,
    to_windows,
)
from swinv2_train.models.precision import at_least_float32, without_autocast


@dataclass(frozen=True)
class ChunkPlan:
    """Sizes of a chunk: windows, heads, and the box of queries of a window, one side per axis.

    A box covers consecutive tokens: one index of the leading axes, a span of the next one, and all of the rest.
    """

    windows: int
    heads: int
    queries: Window


def plan_chunks(
    windows: int, heads: int, window: Window, budget_bytes: float, element_bytes: int, *, masked: bool, backward: bool
) -> ChunkPlan:
    """Fit the score-sized tensors that exist at the same time into a budget.

    In forward, these are the scores and the bias; in backward the probabilities, their gradient, the bias, its
    gradient, and the chunk's part of that; the mask adds a byte per pair of tokens. The smallest chunk is one row of
    queries along the last axis, of one window and head.

    Args:
        windows: windows of the entire batch, B * nW.
    """
    score_copies, bias_copies = (2, 3) if backward else (1, 1)
    tokens = math.prod(window)

    def cost(rows: int, group: int) -> int:
        scores = rows * (group * score_copies * element_bytes + int(masked))
        return scores + group * bias_copies * element_bytes

    pairs = budget_bytes / tokens**2
    if cost(windows, 1) <= pairs:  # all windows together, so each bias is spread only once
        return ChunkPlan(windows, max(g for g in range(1, heads + 1) if cost(windows, g) <= pairs), window)
    if cost(1, 1) <= pairs:
        return ChunkPlan(int((pairs - cost(0, 1)) / (cost(1, 1) - cost(0, 1))), 1, window)
    return ChunkPlan(1, 1, _largest_box(window, budget_bytes, cost(1, 1) * tokens))


def _largest_box(window: Window, budget_bytes: float, bytes_per_query: int) -> Window:
    """Return the largest box of consecutive queries that fits into a budget, at least a row along the last axis."""
    for axis, side in enumerate(window[:-1]):
        whole = window[axis + 1 :]
        steps = int(budget_bytes / (bytes_per_query * math.prod(whole)))
        if steps >= 1:
            return (*(1 for _ in window[:axis]), min(steps, side), *whole)
    return (*(1 for _ in window[:-1]), window[-1])


class _Box(NamedTuple):
    """Some queries of a window, as a span per axis and as a range of its tokens."""

    spans: tuple[Span, ...]
    tokens: slice

    @property
    def sides(self) -> Window:
        return tuple(last - first for first, last in self.spans)


def _boxes(window: Window, sides: Window) -> list[_Box]:
    """Divide the queries of a window into boxes of at most these sides, in token order."""
    boxes, start = [], 0
    axes = ([(i, min(i + step, side)) for i in range(0, side, step)] for side, step in zip(window, sides, strict=True))
    for spans in itertools.product(*axes):
        stop = start + math.prod(last - first for first, last in spans)
        boxes.append(_Box(spans, slice(start, stop)))
        start = stop
    return boxes


def _spans(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _directions(x: Tensor, cosine: bool) -> tuple[Tensor, Tensor | None]:
    """Return, for the cosine, the unit vectors along the last dimension and their lengths (zero vectors stay zero); for
    the dot product, the vectors themselves."""
    if not cosine:
        return x, None
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    length = length.masked_fill(length == 0, 1.0)
    return x / length, length


def _directions_backward(gradient: Tensor, unit: Tensor, length: Tensor | None) -> Tensor:
    if length is None:
        return gradient
    return (gradient - unit * (gradient * unit).sum(-1, keepdim=True)) / length


def _factor(scale: Tensor | None, group: slice, head_dim: int) -> Tensor | float:
    """Return the factor of the queries of some heads."""
    return head_dim**-0.5 if scale is None else scale[group, None, None]


class _ScoreMaker:
    """Computes the bias and the scores of a chunk from the table and the regions."""

    def __init__(self, table: Tensor, regions: Tensor | None, window: Window) -> None:
        self.table, self.regions, self.window = table, regions, window

    def bias(self, heads: slice, box: _Box) -> Tensor:
        return expand_bias(self.table[heads], self.window, box.spans)

    def scores(self, q: Tensor, k: Tensor, bias: Tensor, windows: slice, queries: slice) -> Tensor:
        """Directions of queries times their factor, and directions of keys -> masked scores (windows, heads, q, N)."""
        scores = torch.matmul(q, k.transpose(-1, -2)).add_(bias)
        if self.regions is not None:
            index = torch.arange(windows.start, windows.stop, device=q.device) % self.regions.shape[0]
            regions = self.regions[index]
            scores.add_(region_mask(regions[:, queries], regions).unsqueeze(1), alpha=MASK_VALUE)
            if len(self.window) > 2:
                scores.masked_fill_(time_mask(regions[:, queries], regions).unsqueeze(1), -math.inf)
        return scores


class _SequentialAttention(torch.autograd.Function):
    """See `sequential_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        scale: Tensor | None,
        table: Tensor,
        regions: Tensor | None,
        window: Window,
        budget_bytes: float,
    ) -> Tensor:
        heads, padded = table.shape[0], tuple(qkv.shape[1:-1])
        wide, cosine = at_least_float32(qkv.dtype), scale is not None
        q, k, v = to_windows(qkv, window, 3, heads).flatten(1, 2).unbind()
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        log_sum = torch.empty(q.shape[:-1], dtype=wide, device=q.device)
        maker = _ScoreMaker(table, regions, window)
        plan = plan_chunks(
            q.shape[0], heads, window, budget_bytes, wide.itemsize, masked=regions is not None, backward=False
        )
        boxes = _boxes(window, plan.queries)
        for group in _spans(heads, plan.heads):
            shared = maker.bias(group, boxes[0]) if len(boxes) == 1 else None
            factor = _factor(scale, group, q.shape[-1])
            for part in _spans(q.shape[0], plan.windows):
                key, value = _directions(k[part, group].to(wide), cosine)[0], v[part, group].to(wide)
                for box in boxes:
                    queries = box.tokens
                    query = _directions(q[part, group, queries].to(wide), cosine)[0] * factor
                    bias = maker.bias(group, box) if shared is None else shared
                    scores = maker.scores(query, key, bias, part, queries)
                    top = scores.amax(-1, keepdim=True)
                    total = scores.sub_(top).exp_().sum(-1, keepdim=True)
                    out[part, group, queries] = (torch.matmul(scores, value) / total).to(out.dtype)
                    log_sum[part, group, queries] = (top + total.log()).squeeze(-1)
                    del scores, bias
        del q, k, v  # before the result is copied into a map
        merged = from_windows(out.view(1, qkv.shape[0], -1, *out.shape[1:]), window, padded)
        # Save the map itself, not its windows: it is the input of the next projection, which keeps it anyway.
        ctx.save_for_backward(qkv, scale, table, regions, merged, log_sum)
        ctx.window, ctx.budget_bytes = window, budget_bytes
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_merged: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad_merged):
            return _backward(ctx, grad_merged)


def _backward(ctx: Any, grad_merged: Tensor) -> tuple[Tensor | None, ...]:
    qkv, scale, table, regions, merged, log_sum = ctx.saved_tensors
    window, heads = ctx.window, table.shape[0]
    wide, cosine = log_sum.dtype, scale is not None
    windowed = to_windows(qkv, window, 3, heads)
    # Not empty_like: that keeps the strides of `windowed`, which is a view if a window is one token wide. Flattening
    # such a tensor copies it, and writes to the copy are lost. `view` raises an error instead of copying.
    grad_windowed = torch.empty(windowed.shape, dtype=windowed.dtype, device=windowed.device)
    grads = grad_windowed.view(3, -1, *windowed.shape[3:])
    (q, k, v), (grad_q, grad_k, grad_v) = windowed.flatten(1, 2).unbind(), grads.unbind()
    out, grad_out = (to_windows(x, window, 1, heads).flatten(0, 2) for x in (merged, grad_merged))
    need_table = ctx.needs_input_grad[2]
    grad_table, grad_scale = torch.zeros_like(table), torch.zeros_like(scale) if cosine else None
    maker = _ScoreMaker(table, regions, window)
    plan = plan_chunks(
        q.shape[0], heads, window, ctx.budget_bytes, wide.itemsize, masked=regions is not None, backward=True
    )
    boxes = _boxes(window, plan.queries)
    whole = len(boxes) == 1
    for group in _spans(heads, plan.heads):
        shared = maker.bias(group, boxes[0]) if whole else None
        grad_bias = torch.zeros_like(shared) if whole and need_table else None
        factor = _factor(scale, group, q.shape[-1])
        for part in _spans(q.shape[0], plan.windows):
            key, key_length = _directions(k[part, group].to(wide), cosine)
            value = v[part, group].to(wide)
            grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
            for box in boxes:
                queries = box.tokens
                unit, length = _directions(q[part, group, queries].to(wide), cosine)
                gradient = grad_out[part, group, queries].to(wide)
                query = unit * factor
                bias = maker.bias(group, box) if shared is None else shared
                weights = maker.scores(query, key, bias, part, queries)
                weights.sub_(log_sum[part, group, queries, None]).exp_()
                grad_value += torch.matmul(weights.transpose(-1, -2), gradient)
                # Softmax backward: p * (dp - sum(p * dp)); the sum equals the product of the result and its gradient.
                mean = (gradient * out[part, group, queries]).sum(-1, keepdim=True)
                grad_scores = torch.matmul(gradient, value.transpose(-1, -2)).sub_(mean).mul_(weights)
                del weights, bias
                if grad_bias is not None:
                    grad_bias += grad_scores.sum(0)
                elif need_table:
                    used = (group, *offset_slices(window, box.spans))
                    grad_table[used] += collapse_bias(grad_scores.sum(0), window, box.sides)
                grad_query = torch.matmul(grad_scores, key)
                grad_key += torch.matmul(grad_scores.transpose(-1, -2), query)
                if grad_scale is not None:
                    grad_scale[group] += (grad_query * unit).sum((0, 2, 3))
                grad_q[part, group, queries] = _directions_backward(grad_query * factor, unit, length).to(qkv.dtype)
                del grad_scores
            grad_k[part, group] = _directions_backward(grad_key, key, key_length).to(qkv.dtype)
            grad_v[part, group] = grad_value.to(qkv.dtype)
        if grad_bias is not None:
            grad_table[group] = collapse_bias(grad_bias, window)
    del windowed, q, k, v, out, grad_out, grads, grad_q, grad_k, grad_v  # before the gradients are copied into a map
    grad_qkv = from_windows(grad_windowed, window, tuple(qkv.shape[1:-1]))
    return grad_qkv, grad_scale, grad_table if need_table else None, None, None, None


def sequential_attention(
    qkv: Tensor, scale: Tensor | None, table: Tensor, window: Window, shift: Window, options: AttentionOptions
) -> Tensor:
    """Attend with a bounded part of the scores in memory, `options.chunk_mib` each in forward and backward.

    Scores, softmax, and the product with the values are computed in at least float32.
    """
    # `compile_blocks` keeps this function out of its graphs. Create the regions in here, because until torch 2.11 a
    # constant of the graph before a break arrives after it as a function instead of a tensor.
    regions = map_regions(qkv, window, shift, options.time_padding)
    return _SequentialAttention.apply(qkv, scale, table, regions, window, options.chunk_mib * 2**20)
