"""Swin blocks and stages. Maps are (B, *sides, C), with any number of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2_train.config.model import fit_window
from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.drop_path import Residual
from swinv2_train.models.geometry import Window
from swinv2_train.models.layers import LayerNorm, Mlp, PatchMerging


@dataclass(frozen=True)
class BlockWindow:
    """The configured attention window of a block; it is clamped to the map on every call."""

    sides: Window
    shifted: bool = False
    """True if the map is rolled by half a window."""
    rule: str = "per-axis"
    """Rule by which the window is clamped, see `fit_window`."""

    def fit(self, sides: Window) -> tuple[Window, Window]:
        """Return the window and the shift for a map with these sides."""
        window, shift = fit_window(self.sides, sides, self.rule)
        return window, shift if self.shifted else tuple(0 for _ in shift)


class SwinBlock(nn.Module):
    """Attention and MLP. Each is the residual branch f of one step of the main branch x:

    - res-post: x + norm(f(x)) (paper section 3.2), whose norm starts at 0;
    - pre: x + f(norm(x)), as in Swin V1;
    - post: norm(x + f(x)), as in the original transformer;
    - sandwich: x + norm_out(f(norm(x))) (arXiv 2105.13290).

    Args:
        norm_placement: one of those above.
        extra_norm: end with a LayerNorm on the main branch (paper section 3.6, H and G).
    """

    def __init__(
        self,
        dim: int,
        attention: WindowAttention,
        mlp_hidden: int,
        *,
        window: BlockWindow,
        norm_placement: str,
        extra_norm: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.norm_placement = norm_placement
        initial = 0.0 if norm_placement == "res-post" else 1.0
        self.norm1 = LayerNorm(dim, initial_weight=initial)
        self.attn = attention
        self.norm2 = LayerNorm(dim, initial_weight=initial)
        self.mlp = Mlp(dim, mlp_hidden)
        sandwich = norm_placement == "sandwich"
        self.norm1_out = LayerNorm(dim) if sandwich else None
        self.norm2_out = LayerNorm(dim) if sandwich else None
        self.enorm = LayerNorm(dim) if extra_norm else None
        self.residual = Residual()

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """(B, *sides, C) -> (B, *sides, C); `scales` (B, 2) multiply the two branches, None means 1."""
        attention_scale, mlp_scale = (None, None) if scales is None else scales.unbind(1)
        x = self._add(x, self._attend, self.norm1, self.norm1_out, attention_scale)
        x = self._add(x, self.mlp, self.norm2, self.norm2_out, mlp_scale)
        return x if self.enorm is None else self.enorm(x)

    def _add(
        self,
        x: Tensor,
        branch: Callable[[Tensor], Tensor],
        norm: LayerNorm,
        norm_out: LayerNorm | None,
        scale: Tensor | None,
    ) -> Tensor:
        if self.norm_placement == "res-post":
            return self.residual(x, norm(branch(x)), scale)
        if self.norm_placement == "post":
            return norm(self.residual(x, branch(x), scale))
        out = branch(norm(x))
        return self.residual(x, out if norm_out is None else norm_out(out), scale)

    def _attend(self, x: Tensor) -> Tensor:
        sides = tuple(x.shape[1:-1])
        axes = tuple(range(1, len(sides) + 1))
        window, shift = self.window.fit(sides)
        padding = [-side % extent for side, extent in zip(sides, window, strict=True)]
        # Pad before the roll, as in the official dense prediction code; padding in space is not masked.
        if any(padding):
            x = F.pad(x, (0, 0, *(size for end in reversed(padding) for size in (0, end))))
        if any(shift):
            x = x.roll(tuple(-offset for offset in shift), dims=axes)
        x = self.attn(x, window, shift, padding[0] if len(sides) > 2 else 0)
        if any(shift):
            x = x.roll(shift, dims=axes)
        return x[(slice(None), *(slice(side) for side in sides))]


class SwinStage(nn.Module):
    """The blocks of one resolution, and the patch merging after them (called by the backbone)."""

    def __init__(
        self, blocks: Sequence[SwinBlock], checkpointed: Sequence[bool], downsample: PatchMerging | None
    ) -> None:
        super().__init__()
        self.checkpointed = tuple(checkpointed)
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """(B, *sides, C) -> (B, *sides, C), before patch merging; `scales` is (B, depth, 2) or None."""
        for index, (block, recompute) in enumerate(zip(self.blocks, self.checkpointed, strict=True)):
            block_scales = None if scales is None else scales[:, index]
            if recompute and torch.is_grad_enabled() and _needs_backward(block, x):
                # A block draws no random numbers, so no random state needs to be restored.
                x = checkpoint(block, x, block_scales, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, block_scales)
        return x


def _needs_backward(block: nn.Module, x: Tensor) -> bool:
    """Return False for a frozen block after frozen ones: autograd stores nothing of it that could be recomputed."""
    return x.requires_grad or any(parameter.requires_grad for parameter in block.parameters())
