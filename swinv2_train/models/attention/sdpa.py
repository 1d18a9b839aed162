"""Window attention with torch's fused attention.

Its operands have the dtype of the model (half precision in a half-precision model); torch computes the softmax in
float32 internally.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from swinv2_train.models.attention.contract import AttentionOptions
from swinv2_train.models.attention.reference import unit_vectors
from swinv2_train.models.geometry import Window, expand_bias, from_windows, map_regions, score_mask, to_windows


def sdpa_attention(
    qkv: Tensor, scale: Tensor | None, table: Tensor, window: Window, shift: Window, options: AttentionOptions
) -> Tensor:
    """Attend with `scaled_dot_product_attention`, with bias and mask as its additive mask."""
    q, k, v = to_windows(qkv, window, 3, table.shape[0]).unbind()
    shape = q.shape
    factor = 1.0 if scale is not None else q.shape[-1] ** -0.5
    if scale is not None:
        q, k = (unit_vectors(q) * scale[:, None, None]).to(v.dtype), unit_vectors(k).to(v.dtype)
    # Softmax ignores a constant, and half precision is finest around zero, so center the bias before rounding it.
    bias = expand_bias(table - options.bias_center, window)
    regions = map_regions(qkv, window, shift, options.time_padding)
    if regions is None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        bias = bias.unsqueeze(0)
    else:
        # With the windows in the head dimension, one mask per window broadcasts over all samples.
        q, k, v = (x.flatten(1, 2) for x in (q, k, v))
        mask = score_mask(regions, len(window)).to(bias.dtype)
        bias = (mask.unsqueeze(1) + bias).flatten(0, 1).unsqueeze(0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(v.dtype), scale=factor)
    return from_windows(out.reshape(1, *shape), window, tuple(qkv.shape[1:-1]))
