"""The plain formula of window attention, with all scores in memory: the reference for tests of the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from swinv2_train.models.attention.contract import AttentionOptions
from swinv2_train.models.geometry import (
    Window,
    expand_bias,
    from_windows,
    map_regions,
    score_mask,
    to_windows,
)
from swinv2_train.models.precision import at_least_float32


def unit_vectors(x: Tensor) -> Tensor:
    """Divide by the Euclidean length of the last dimension, in at least float32.

    A zero vector, such as the key of a padding token, stays zero and has a finite gradient; dividing by a tiny epsilon
    instead would overflow in float16.
    """
    x = x.to(at_least_float32(x.dtype))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.masked_fill(length == 0, 1.0)


def reference_attention(
    qkv: Tensor, scale: Tensor | None, table: Tensor, window: Window, shift: Window, options: AttentionOptions
) -> Tensor:
    """Compute softmax(s + bias + mask) v with s = scale * cos(q, k) or q k / sqrt(d), literally."""
    q, k, v = to_windows(qkv, window, 3, table.shape[0]).unbind()
    out = _weights(q, k, scale, table, window, _regions(qkv, window, shift, options)).to(v.dtype) @ v
    return from_windows(out.unsqueeze(0), window, tuple(qkv.shape[1:-1]))


def attention_weights(
    qkv: Tensor, scale: Tensor | None, table: Tensor, window: Window, shift: Window, options: AttentionOptions
) -> Tensor:
    """Return softmax(s + bias + mask) alone, (B, nW, h, N, N) in at least float32; arguments as for a backend."""
    q, k, _ = to_windows(qkv, window, 3, table.shape[0]).unbind()
    return _weights(q, k, scale, table, window, _regions(qkv, window, shift, options))


def _regions(qkv: Tensor, window: Window, shift: Window, options: AttentionOptions) -> Tensor | None:
    return map_regions(qkv, window, shift, options.time_padding)


def _weights(
    q: Tensor, k: Tensor, scale: Tensor | None, table: Tensor, window: Window, regions: Tensor | None
) -> Tensor:
    if scale is None:
        q, k = (x.to(at_least_float32(x.dtype)) for x in (q, k))
        q = q * q.shape[-1] ** -0.5
    else:
        q, k = unit_vectors(q) * scale[:, None, None], unit_vectors(k)
    scores = q @ k.transpose(-1, -2) + expand_bias(table, window)
    if regions is not None:
        scores = scores + score_mask(regions, len(window)).unsqueeze(1).to(scores.dtype)
    return scores.softmax(dim=-1)
