"""Video Swin Transformer written from its description (arXiv 2106.13230 and its code), with no code of the package.

Norms before the branches, dot products, a table of biases, windows in space and time, a convolution over (2, 4, 4)
pixels. Two things are as in this package, because the comparison is of the attention: the norm of a patch merging
follows the reduction, and keys have no bias. A clip must have whole windows in time, or less than one: Video Swin
attends to padding in time. In float64; the tensors of a state have the names of the package.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def video_swin(
    state: dict[str, Tensor], clips: Tensor, depths: list[int], window: tuple[int, int, int]
) -> list[Tensor]:
    """Features of every stage, (B, T', H_i, W_i, C_i), of clips (B, 3, T, H, W).

    Args:
        depths: of the first stages, up to all four; their maps must be at least as high and wide as the window,
            because the index of Video Swin has another meaning in a window that is smaller in space.
    """
    weight = state["patch_embed.proj.weight"]
    stride = tuple(weight.shape[2:])
    short = [-side % step for side, step in zip(clips.shape[2:], stride, strict=True)]
    clips = F.pad(clips, (0, short[2], 0, short[1], 0, short[0]))
    x = F.conv3d(clips, weight, state["patch_embed.proj.bias"], stride=stride)
    x = _norm(x.permute(0, 2, 3, 4, 1), state, "patch_embed.norm")
    features = []
    for stage, depth in enumerate(depths):
        for index in range(depth):
            x = _block(state, f"layers.{stage}.blocks.{index}", x, window, shifted=index % 2 == 1)
        features.append(x)
        if stage < len(depths) - 1:
            x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
            parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            name = f"layers.{stage}.downsample"
            x = _norm(torch.cat(parts, -1) @ state[f"{name}.reduction.weight"].T, state, f"{name}.norm")
    if len(features) == 4:
        features[-1] = _norm(features[-1], state, "norm")
    return features


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _block(state: dict[str, Tensor], name: str, x: Tensor, window: tuple[int, int, int], *, shifted: bool) -> Tensor:
    sides = x.shape[1:4]
    used = [min(extent, side) for extent, side in zip(window, sides, strict=True)]
    shift = [extent // 2 if shifted and side > extent else 0 for extent, side in zip(window, sides, strict=True)]
    assert used[1:] == list(window[1:])
    bias = _bias(state[f"{name}.attn.relative_position_bias_table"], window, math.prod(used))
    attended = _attention(state, f"{name}.attn", _norm(x, state, f"{name}.norm1"), bias, used, shift)
    x = x + attended
    y = F.linear(_norm(x, state, f"{name}.norm2"), state[f"{name}.mlp.fc1.weight"], state[f"{name}.mlp.fc1.bias"])
    return x + F.linear(F.gelu(y), state[f"{name}.mlp.fc2.weight"], state[f"{name}.mlp.fc2.bias"])


def _attention(
    state: dict[str, Tensor], name: str, x: Tensor, position_bias: Tensor, window: list[int], shift: list[int]
) -> Tensor:
    sides = x.shape[1:4]
    short = [-side % extent for side, extent in zip(sides, window, strict=True)]
    x = F.pad(x, (0, 0, 0, short[2], 0, short[1], 0, short[0]))
    padded = x.shape[1:4]
    x = torch.roll(x, [-by for by in shift], (1, 2, 3))
    tokens = _partition(x, window)
    q_bias = state[f"{name}.q_bias"]
    bias = torch.cat([q_bias, torch.zeros_like(q_bias), state[f"{name}.v_bias"]])
    qkv = F.linear(tokens, state[f"{name}.qkv.weight"], bias)
    q, k, v = qkv.unflatten(-1, (3, len(position_bias), -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + position_bias
    if any(shift):
        regions, number = x.new_zeros(1, *padded, 1), 0
        cuts = [
            (slice(-extent), slice(-extent, -by or None), slice(-by, None) if by else slice(0))
            for extent, by in zip(window, shift, strict=True)
        ]
        for first in cuts[0]:
            for second in cuts[1]:
                for third in cuts[2]:
                    regions[:, first, second, third] = number
                    number += 1
        labels = _partition(regions, window).squeeze(-1)
        mask = -100.0 * (labels.unsqueeze(1) != labels.unsqueeze(2)).to(scores.dtype)
        scores = (scores.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1)).flatten(0, 1)
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = F.linear(out, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"])
    counts = [side // extent for side, extent in zip(padded, window, strict=True)]
    out = out.view(-1, *counts, *window, out.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape)
    out = torch.roll(out, shift, (1, 2, 3))
    return out[:, : sides[0], : sides[1], : sides[2]]


def _partition(x: Tensor, window: list[int]) -> Tensor:
    """(B, T, H, W, C) -> (windows, tokens, C)."""
    b, t, h, w, c = x.shape
    x = x.view(b, t // window[0], window[0], h // window[1], window[1], w // window[2], window[2], c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, math.prod(window), c)


def _bias(table: Tensor, window: tuple[int, int, int], tokens: int) -> Tensor:
    """(offsets, heads) of the configured window -> (heads, N, N) for the N tokens of the window in use.

    By the index that the code of Video Swin computes for the configured window, of which it takes the first N rows and
    columns.
    """
    places = torch.cartesian_prod(*(torch.arange(side) for side in window))
    distance = places.unsqueeze(1) - places.unsqueeze(0) + torch.tensor([side - 1 for side in window])
    strides = ((2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1)
    index = (distance * torch.tensor(strides)).sum(-1)
    return table[index[:tokens, :tokens]].permute(2, 0, 1)
