"""Global attention over the last map of the backbone, as in HTC++ (ViT-Adapter calls it extra attention)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.models.drop_path import add_branch
from swinv2_train.models.layers import LayerNorm, Mlp

_MLP_RATIO = 4


class GlobalAttention(nn.Module):
    """A transformer block x + f(norm(x)) over all tokens, without position bias, and a final norm.

    Args:
        heads: attention heads; they divide `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, _MLP_RATIO * dim)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); `scales` (B, 2) multiply the two branches, None means 1."""
        attention_scale, mlp_scale = (None, None) if scales is None else scales.unbind(1)
        x = add_branch(x, self._attend(self.norm1(x)), attention_scale)
        x = add_branch(x, self.mlp(self.norm2(x)), mlp_scale)
        return self.norm(x)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(x.shape))
