"""Shifted-window attention: cosine similarity with a log-spaced continuous position bias (paper sections 3.2 and 3.3),
and what the paper compares them with: the dot product, a linearly spaced bias network, a table of biases.

Three backends compute the same function with the same gradients:

- `reference`: the plain formula, scores in full; what the others are tested against.
- `sdpa`: torch's fused attention. Its operands have the dtype of the model (half precision in a half-precision model);
  torch keeps its internal softmax in float32.
- `sequential`: bounded memory, see `sequential.py`.

A backend takes
    qkv      (B, Hp, Wp, 3C)   projected token map, rolled and padded to whole windows, [q; k; v] each head-major
    scale    (h,) or None      factor of the cosine, at least float32; None: dot product over the root of its length
    table    (h, P, Q)         position bias per offset, at least float32 (see `geometry.expand_bias`)
    regions  (nW, N) or None   regions of the shift mask; None where windows are not shifted
    window   (wh, ww)
and returns the (B, Hp, Wp, C) map before the output projection.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.model import CPB_HIDDEN
from swinv2_train.models.geometry import (
    MASK_VALUE,
    Window,
    expand_bias,
    from_windows,
    region_mask,
    relative_coordinates,
    resize_table,
    to_windows,
    window_regions,
)
from swinv2_train.models.precision import at_least_float32, without_autocast
from swinv2_train.models.sequential import sequential_attention

MAX_LOG_SCALE = math.log(100.0)
"""The temperature of the cosine does not fall below 0.01 (paper section 3.2)."""
BIAS_RANGE = 16.0
"""The position bias that a network makes lies between 0 and this (official code)."""


def unit_vectors(x: Tensor) -> Tensor:
    """Divide by the Euclidean length of the last dimension, in at least float32.

    A zero vector, such as the key of a padding token, stays zero and has a finite gradient; dividing by a tiny epsilon
    instead would overflow in float16.
    """
    x = x.to(at_least_float32(x.dtype))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.masked_fill(length == 0, 1.0)


def reference_attention(
    qkv: Tensor, scale: Tensor | None, table: Tensor, regions: Tensor | None, window: Window
) -> Tensor:
    """softmax(s + bias + mask) v with s = scale * cos(q, k) or q k / sqrt(d), in as many words."""
    q, k, v = to_windows(qkv, window, 3, table.shape[0]).unbind()
    if scale is None:
        q, k = (x.to(at_least_float32(x.dtype)) for x in (q, k))
        q = q * q.shape[-1] ** -0.5
    else:
        q, k = unit_vectors(q) * scale[:, None, None], unit_vectors(k)
    scores = q @ k.transpose(-1, -2) + expand_bias(table, window)
    if regions is not None:
        scores = scores + (region_mask(regions, regions) * MASK_VALUE).unsqueeze(1).to(scores.dtype)
    out = scores.softmax(dim=-1).to(v.dtype) @ v
    return from_windows(out.unsqueeze(0), window, (qkv.shape[1], qkv.shape[2]))


def sdpa_attention(
    qkv: Tensor,
    scale: Tensor | None,
    table: Tensor,
    regions: Tensor | None,
    window: Window,
    centre: float = BIAS_RANGE / 2,
) -> Tensor:
    """The same by `scaled_dot_product_attention`, with bias and mask as its additive mask.

    Args:
        centre: the value that the position bias starts at.
    """
    q, k, v = to_windows(qkv, window, 3, table.shape[0]).unbind()
    shape = q.shape
    factor = 1.0 if scale is not None else q.shape[-1] ** -0.5
    if scale is not None:
        q, k = (unit_vectors(q) * scale[:, None, None]).to(v.dtype), unit_vectors(k).to(v.dtype)
    # Softmax does not see a constant, and half precision is finest around zero: centre the bias before rounding it.
    bias = expand_bias(table - centre, window)
    if regions is None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        bias = bias.unsqueeze(0)
    else:
        # With the windows in the head dimension, one mask per window serves every image by broadcasting.
        q, k, v = (x.flatten(1, 2) for x in (q, k, v))
        mask = (region_mask(regions, regions) * MASK_VALUE).to(bias.dtype)
        bias = (mask.unsqueeze(1) + bias).flatten(0, 1).unsqueeze(0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(v.dtype), scale=factor)
    return from_windows(out.reshape(1, *shape), window, (qkv.shape[1], qkv.shape[2]))


def _regions(qkv: Tensor, window: Window, shift: tuple[int, int]) -> Tensor | None:
    return window_regions((qkv.shape[1], qkv.shape[2]), window, shift, qkv.device) if any(shift) else None


@torch.compiler.disable
def _sequential(
    qkv: Tensor, scale: Tensor | None, table: Tensor, window: Window, shift: tuple[int, int], chunk_mib: float
) -> Tensor:
    """`sequential_attention`, with the regions made outside of a compiled graph: until torch 2.11, a constant of the
    graph before a break arrives after it as a function instead of a tensor."""
    return sequential_attention(qkv, scale, table, _regions(qkv, window, shift), window, chunk_mib)


class WindowAttention(nn.Module):
    """Window attention over a token map, for any window: no parameter but a bias table has the size of one.

    Keys have no bias: added to all keys it shifts all dot products of a query alike, which softmax does not see.

    Args:
        dim: channels C.
        num_heads: attention heads h.
        pretrained_window: window the weights were trained with, and the size of a bias table; without a table, a side
            of 0 stands for the window in use.
        backend: reference, sdpa or sequential.
        chunk_mib: memory bound of the sequential backend.
        similarity: cosine or dot.
        position_bias: log-cpb, linear-cpb or table.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        pretrained_window: Window,
        *,
        backend: str,
        chunk_mib: float,
        similarity: str = "cosine",
        position_bias: str = "log-cpb",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pretrained_window = pretrained_window
        self.backend = backend
        self.chunk_mib = chunk_mib
        self.position_bias = position_bias
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1)) if similarity == "cosine" else None
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))
        if position_bias == "table":
            offsets = (2 * pretrained_window[0] - 1) * (2 * pretrained_window[1] - 1)
            self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, num_heads))
        else:
            last = nn.Linear(CPB_HIDDEN, num_heads, bias=False)
            self.cpb_mlp = nn.Sequential(nn.Linear(2, CPB_HIDDEN), nn.ReLU(), last)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, window: Window, shift: tuple[int, int]) -> Tensor:
        """(B, Hp, Wp, C) -> (B, Hp, Wp, C), for a map of whole windows that is already rolled by `shift`."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))  # keys have none
        qkv = F.linear(x, self.qkv.weight, bias)
        with without_autocast(x):
            scale, table = self.scale(), self.position_table(window)
            if self.backend == "sequential":
                out = _sequential(qkv, scale, table, window, shift, self.chunk_mib)
            elif self.backend == "sdpa":
                centre = 0.0 if self.position_bias == "table" else BIAS_RANGE / 2
                out = sdpa_attention(qkv, scale, table, _regions(qkv, window, shift), window, centre)
            else:
                out = reference_attention(qkv, scale, table, _regions(qkv, window, shift), window)
        return self.proj(out)

    def scale(self) -> Tensor | None:
        """Factor of the cosine per head, (h,), in at least float32: the inverse temperature, at most 100. None for the
        dot product."""
        if self.logit_scale is None:
            return None
        log_scale = self.logit_scale.flatten().to(at_least_float32(self.logit_scale.dtype))
        return log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def position_table(self, window: Window) -> Tensor:
        """Position bias per head and offset, (h, P, Q), in at least float32: between 0 and 16 from a network, any value
        from a table."""
        return self._stored_table(window) if self.position_bias == "table" else self._network_table(window)

    def _stored_table(self, window: Window) -> Tensor:
        stored = self.relative_position_bias_table
        height, width = self.pretrained_window
        with without_autocast(stored):
            table = stored.to(at_least_float32(stored.dtype)).t()
            return resize_table(table.reshape(self.num_heads, 2 * height - 1, 2 * width - 1), window)

    def _network_table(self, window: Window) -> Tensor:
        hidden, _, out = self.cpb_mlp
        wide = at_least_float32(out.weight.dtype)
        with without_autocast(out.weight):
            coordinates = relative_coordinates(
                window, self.pretrained_window, out.weight.device, logarithmic=self.position_bias == "log-cpb"
            )
            x = F.relu(F.linear(coordinates.to(wide), hidden.weight.to(wide), hidden.bias.to(wide)))
            # Squashed are the (2wh - 1)(2ww - 1) offsets, before they are spread over the N * N pairs.
            table = BIAS_RANGE * torch.sigmoid(F.linear(x, out.weight.to(wide)))
        return table.t().reshape(self.num_heads, 2 * window[0] - 1, 2 * window[1] - 1)
