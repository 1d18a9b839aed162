"""Swin Transformer V2 written a second time, window by window and in float64, with no code of the package.

Slow and obvious on purpose: no roll, no partition, no table. Every window lists its tokens, every pair of tokens asks
the bias network for its own offset. Blocks and attention take maps of any number of axes.
"""

from __future__ import annotations

import itertools
import math

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

    A state without logit scales means the dot product, `table_windows` (one per stage) tables of biases.
    """
    x = _layer_norm(_patches(state, image, patch), state, "patch_embed.norm")
    features = []
    for stage, depth in enumerate(depths):
        for index in range(depth):
            built_for = None if table_windows is None else table_windows[stage]
            x = plain_block(
                state,
                f"layers.{stage}.blocks.{index}",
                x,
                heads[stage],
                _fit(window, x.shape[:-1], rule, shifted=index % 2 == 1),
                placement=placement,
                coordinates=linear if built_for is None else built_for,
            )
        features.append(x)
        if stage < len(depths) - 1:
            x = _merge(x, state, f"layers.{stage}.downsample")
    features[-1] = _layer_norm(features[-1], state, "norm")
    return features


def plain_block(
    state: dict[str, Tensor],
    name: str,
    x: Tensor,
    heads: int,
    fit: tuple[tuple[int, ...], tuple[int, ...]],
    *,
    placement: str = "res-post",
    coordinates: bool | tuple[int, ...] = False,
) -> Tensor:
    """One block on a (*sides, C) map.

    Args:
        name: prefix of its tensors in the state.
        fit: window and shift, one number per axis.
        coordinates: False for log-CPB, True for linear-CPB, the window of a table for a table.
    """

    def attend(y: Tensor) -> Tensor:
        return _attention(state, f"{name}.attn", heads, fit, coordinates, y)

    def mlp(y: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(_linear(y, state, f"{name}.mlp.fc1"))
        return _linear(hidden, state, f"{name}.mlp.fc2")

    for branch, norm in ((attend, f"{name}.norm1"), (mlp, f"{name}.norm2")):
        if placement == "res-post":
            x = x + _layer_norm(branch(x), state, norm)
        elif placement == "pre":
            x = x + branch(_layer_norm(x, state, norm))
        elif placement == "post":
            x = _layer_norm(x + branch(x), state, norm)
        else:
            x = x + _layer_norm(branch(_layer_norm(x, state, norm)), state, f"{norm}_out")
    return _layer_norm(x, state, f"{name}.enorm") if f"{name}.enorm.weight" in state else x


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


def _fit(
    window: tuple[int, ...], sides: tuple[int, ...], rule: str, *, shifted: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift on this map."""
    if rule == "official" and min(sides) <= window[0]:
        fitted, shift = (min(sides),) * len(sides), (0,) * len(sides)
    else:
        fitted = tuple(min(extent, side) for extent, side in zip(window, sides, strict=True))
        shift = tuple(extent // 2 if extent < side else 0 for extent, side in zip(window, sides, strict=True))
    return fitted, shift if shifted else (0,) * len(sides)


def plain_mask(wrapped: list[list[bool]], late: list[bool]) -> list[list[float]]:
    """The number added to the score of every pair of tokens of a window.

    Args:
        wrapped: along which axes the shift carried each token around the end of the map.
        late: which tokens are padding after the last frame of a clip.
    """

    def entry(a: int, b: int) -> float:
        if late[a] != late[b] or (len(wrapped[a]) > 2 and wrapped[a][0] != wrapped[b][0]):
            return -math.inf  # another time, or a frame that does not exist
        same = wrapped[a] == wrapped[b] or (late[a] and wrapped[a][1:] == wrapped[b][1:])
        return 0.0 if same else -100.0

    return [[entry(a, b) for b in range(len(wrapped))] for a in range(len(wrapped))]


def places(window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The tokens of a window, the last axis changing fastest."""
    return list(itertools.product(*(range(side) for side in window)))


def _attention(
    state: dict[str, Tensor],
    name: str,
    heads: int,
    fit: tuple[tuple[int, ...], tuple[int, ...]],
    coordinates: bool | tuple[int, ...],
    x: Tensor,
) -> Tensor:
    *sides, c = x.shape
    window, shift = fit
    whole = [math.ceil(side / extent) * extent for side, extent in zip(sides, window, strict=True)]
    inside = tuple(slice(side) for side in sides)
    canvas = x.new_zeros(*whole, c)
    canvas[inside] = x
    out = x.new_zeros(*whole, c)
    for corner in itertools.product(*(range(0, w, extent) for w, extent in zip(whole, window, strict=True))):
        # A token's place, and along which axes the shift carried it around the end of the map.
        moved = [[a + b + s for a, b, s in zip(corner, place, shift, strict=True)] for place in places(window)]
        tokens = [tuple(m % w for m, w in zip(token, whole, strict=True)) for token in moved]
        wrapped = [[m >= w for m, w in zip(token, whole, strict=True)] for token in moved]
        mask = x.new_tensor(plain_mask(wrapped, [len(sides) > 2 and token[0] >= sides[0] for token in tokens]))
        result = _window(
            torch.stack([canvas[token] for token in tokens]), mask, state, name, heads, window, coordinates
        )
        for token, row in zip(tokens, result, strict=True):
            out[token] = row
    return out[inside]


def _window(
    x: Tensor,
    mask: Tensor,
    state: dict[str, Tensor],
    name: str,
    heads: int,
    window: tuple[int, ...],
    coordinates: bool | tuple[int, ...],
) -> Tensor:
    c = x.shape[1]
    weight = state[f"{name}.qkv.weight"]
    q = x @ weight[:c].T + state[f"{name}.q_bias"]
    k = x @ weight[c : 2 * c].T
    v = x @ weight[2 * c :].T + state[f"{name}.v_bias"]
    if isinstance(coordinates, tuple):
        bias = _table_bias(state[f"{name}.relative_position_bias_table"], coordinates, window)
    else:
        bias = _bias(state, name, window, linear=coordinates)
    scale = state[f"{name}.logit_scale"].flatten() if f"{name}.logit_scale" in state else None
    if scale is not None:
        scale = torch.exp(torch.clamp(scale, max=math.log(100.0)))
    parts = (tensor.unflatten(-1, (heads, -1)).transpose(0, 1) for tensor in (q, k, v))
    return _linear(plain_scores(*parts, scale, bias + mask).transpose(0, 1).flatten(1), state, f"{name}.proj")


def plain_scores(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, added: Tensor) -> Tensor:
    """Attention with one score computed per pair of tokens.

    Args:
        q, k, v: (..., h, N, d).
        scale: (h,) factor of the cosine, None for the dot product.
        added: (..., h, N, N) bias and mask.
    """
    if scale is None:
        q = q / math.sqrt(q.shape[-1])
    else:
        lengths = [torch.where(x.norm(dim=-1) > 0, x.norm(dim=-1), 1.0).unsqueeze(-1) for x in (q, k)]
        q, k = scale[:, None, None] * q / lengths[0], k / lengths[1]
    rows = []
    for i in range(q.shape[-2]):
        scores = [(q[..., i, :] * k[..., j, :]).sum(-1) for j in range(k.shape[-2])]
        weights = torch.softmax(torch.stack(scores, -1) + added[..., i, :], -1)
        rows.append((weights.unsqueeze(-1) * v).sum(-2))
    return torch.stack(rows, -2)


def spread(table: Tensor, window: tuple[int, ...]) -> Tensor:
    """A table (h, *offsets) -> the bias of every pair of tokens, (h, N, N)."""

    def entry(a: tuple[int, ...], b: tuple[int, ...]) -> Tensor:
        return table[(slice(None), *(i - j + side - 1 for i, j, side in zip(a, b, window, strict=True)))]

    return torch.stack([torch.stack([entry(a, b) for b in places(window)], -1) for a in places(window)], 1)


def _table_bias(table: Tensor, built_for: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    grid = table.T.reshape(1, -1, *(2 * side - 1 for side in built_for))
    if window != built_for:  # two axes only
        grid = torch.nn.functional.interpolate(grid, size=[2 * side - 1 for side in window], mode="bicubic")
    return spread(grid[0], window)


def _bias(state: dict[str, Tensor], name: str, window: tuple[int, ...], *, linear: bool) -> Tensor:
    def spaced(offset: int, side: int) -> float:
        if linear:
            return offset / max(side - 1, 1)
        scaled = 8 * offset / max(side - 1, 1)
        return math.copysign(math.log2(abs(scaled) + 1) / 3, scaled)

    axes = range(len(window))
    offsets = [[[spaced(a[n] - b[n], window[n]) for n in axes] for b in places(window)] for a in places(window)]
    first = state[f"{name}.cpb_mlp.0.weight"]
    hidden = torch.relu(first.new_tensor(offsets) @ first.T + state[f"{name}.cpb_mlp.0.bias"])
    return (16 * torch.sigmoid(hidden @ state[f"{name}.cpb_mlp.2.weight"].T)).permute(2, 0, 1)
