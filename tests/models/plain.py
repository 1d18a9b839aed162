"""Swin Transformer V2 written a second time, window by window and in float64, with no code of the package.

Slow and obvious on purpose: no roll, no partition, no table. Every window lists its tokens, every pair of tokens asks
the bias network for its own offset.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor


def plain_features(
    state: dict[str, Tensor],
    image: Tensor,
    patch: int,
    depths: list[int],
    heads: list[int],
    window: tuple[int, int],
    *,
    placement: str = "res-post",
    linear: bool = False,
    table_windows: list[tuple[int, int]] | None = None,
    rule: str = "per-axis",
) -> list[Tensor]:
    """Features per stage, (H_i, W_i, C_i), of one image (channels, H, W), by the state dict of a backbone.

    A state without logit scales stands for the dot product, `table_windows` (one per stage) for tables of biases.
    """
    x = _layer_norm(_patches(state, image, patch), state, "patch_embed.norm")
    features = []
    for stage, depth in enumerate(depths):
        for index in range(depth):
            name = f"layers.{stage}.blocks.{index}"
            coordinates = linear if table_windows is None else table_windows[stage]

            shifted = index % 2 == 1
            fit = _fit(window, x.shape[0], x.shape[1], rule)
            attend = partial(_attention, state, f"{name}.attn", heads[stage], fit, coordinates, shifted)
            mlp = partial(_mlp, state, f"{name}.mlp")
            for branch, norm in ((attend, f"{name}.norm1"), (mlp, f"{name}.norm2")):
                if placement == "res-post":
                    x = x + _layer_norm(branch(x), state, norm)
                elif placement == "pre":
                    x = x + branch(_layer_norm(x, state, norm))
                elif placement == "post":
                    x = _layer_norm(x + branch(x), state, norm)
                else:
                    x = x + _layer_norm(branch(_layer_norm(x, state, norm)), state, f"{norm}_out")
            if f"{name}.enorm.weight" in state:
                x = _layer_norm(x, state, f"{name}.enorm")
        features.append(x)
        if stage < len(depths) - 1:
            x = _merge(x, state, f"layers.{stage}.downsample")
    features[-1] = _layer_norm(features[-1], state, "norm")
    return features


def _linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def _layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _patches(state: dict[str, Tensor], image: Tensor, patch: int) -> Tensor:
    channels, height, width = image.shape
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    canvas = image.new_zeros(channels, rows * patch, columns * patch)
    canvas[:, :height, :width] = image
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    out = image.new_empty(rows, columns, weight.shape[0])
    for i in range(rows):
        for j in range(columns):
            piece = canvas[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            out[i, j] = (weight * piece).sum((1, 2, 3)) + bias
    return out


def _merge(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    height, width, c = x.shape
    canvas = x.new_zeros(height + height % 2, width + width % 2, c)
    canvas[:height, :width] = x
    rows = [
        torch.stack(
            [
                torch.cat([canvas[i, j], canvas[i + 1, j], canvas[i, j + 1], canvas[i + 1, j + 1]])
                for j in range(0, canvas.shape[1], 2)
            ]
        )
        for i in range(0, canvas.shape[0], 2)
    ]
    return _layer_norm(_linear(torch.stack(rows), state, f"{name}.reduction"), state, f"{name}.norm")


def _mlp(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return _linear(torch.nn.functional.gelu(_linear(x, state, f"{name}.fc1")), state, f"{name}.fc2")


def _fit(window: tuple[int, int], height: int, width: int, rule: str) -> tuple[int, int, int, int]:
    """Height and width of the window on this map, and the shift along both sides."""
    if rule == "official":
        side, offset = window[0], window[0] // 2
        if height <= side or width <= side:
            side, offset = min(height, width), 0
        return side, side, offset, offset
    wh, ww = min(window[0], height), min(window[1], width)
    return wh, ww, wh // 2 if window[0] < height else 0, ww // 2 if window[1] < width else 0


def _attention(
    state: dict[str, Tensor],
    name: str,
    heads: int,
    fit: tuple[int, int, int, int],
    coordinates: bool | tuple[int, int],
    shifted: bool,
    x: Tensor,
) -> Tensor:
    height, width, c = x.shape
    wh, ww, sh, sw = fit if shifted else (*fit[:2], 0, 0)
    rows, columns = math.ceil(height / wh) * wh, math.ceil(width / ww) * ww
    canvas = x.new_zeros(rows, columns, c)
    canvas[:height, :width] = x
    out = x.new_zeros(rows, columns, c)
    for top in range(0, rows, wh):
        for left in range(0, columns, ww):
            # A token's place, and whether the shift carried it around the lower or the right edge of the map.
            tokens = [
                ((top + i + sh) % rows, (left + j + sw) % columns, top + i + sh >= rows, left + j + sw >= columns)
                for i in range(wh)
                for j in range(ww)
            ]
            values = torch.stack([canvas[i, j] for i, j, _, _ in tokens])
            mask = values.new_tensor([[0.0 if a[2:] == b[2:] else -100.0 for b in tokens] for a in tokens])
            result = _window(values, mask, state, name, heads, (wh, ww), coordinates)
            for token, row in zip(tokens, result, strict=True):
                out[token[0], token[1]] = row
    return out[:height, :width]


def _window(
    x: Tensor,
    mask: Tensor,
    state: dict[str, Tensor],
    name: str,
    heads: int,
    window: tuple[int, int],
    coordinates: bool | tuple[int, int],
) -> Tensor:
    n, c = x.shape
    d = c // heads
    weight = state[f"{name}.qkv.weight"]
    q = x @ weight[:c].T + state[f"{name}.q_bias"]
    k = x @ weight[c : 2 * c].T
    v = x @ weight[2 * c :].T + state[f"{name}.v_bias"]
    if isinstance(coordinates, tuple):
        bias = _table_bias(state[f"{name}.relative_position_bias_table"], coordinates, window)
    else:
        bias = _bias(state, name, window, linear=coordinates)
    out = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        if f"{name}.logit_scale" in state:
            scores = x.new_zeros(n, n)
            for i in range(n):
                for j in range(n):
                    length = q[i, part].norm() * k[j, part].norm()
                    scores[i, j] = q[i, part] @ k[j, part] / length if length > 0 else 0.0
            scores = scores * math.exp(min(float(state[f"{name}.logit_scale"][head]), math.log(100.0)))
        else:
            scores = q[:, part] @ k[:, part].T / math.sqrt(d)
        weights = torch.softmax(scores + bias[head] + mask, dim=-1)
        out.append(weights @ v[:, part])
    return _linear(torch.cat(out, dim=-1), state, f"{name}.proj")


def _table_bias(table: Tensor, built_for: tuple[int, int], window: tuple[int, int]) -> Tensor:
    rows, columns = (2 * side - 1 for side in built_for)
    grid = table.T.reshape(1, -1, rows, columns)
    if window != built_for:
        size = (2 * window[0] - 1, 2 * window[1] - 1)
        grid = torch.nn.functional.interpolate(grid, size=size, mode="bicubic")
    places = [(i, j) for i in range(window[0]) for j in range(window[1])]
    return torch.stack(
        [
            torch.stack([grid[0, :, a[0] - b[0] + window[0] - 1, a[1] - b[1] + window[1] - 1] for b in places], -1)
            for a in places
        ],
        dim=1,
    )


def _bias(state: dict[str, Tensor], name: str, window: tuple[int, int], *, linear: bool) -> Tensor:
    def spaced(offset: int, side: int) -> float:
        if linear:
            return offset / max(side - 1, 1)
        scaled = 8 * offset / max(side - 1, 1)
        return math.copysign(math.log2(abs(scaled) + 1) / 3, scaled)

    places = [(i, j) for i in range(window[0]) for j in range(window[1])]
    offsets = [[[spaced(a[side] - b[side], window[side]) for side in (0, 1)] for b in places] for a in places]
    first = state[f"{name}.cpb_mlp.0.weight"]
    hidden = torch.relu(first.new_tensor(offsets) @ first.T + state[f"{name}.cpb_mlp.0.bias"])
    return (16 * torch.sigmoid(hidden @ state[f"{name}.cpb_mlp.2.weight"].T)).permute(2, 0, 1)
