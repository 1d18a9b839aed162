"""Attention maps of a few images: the attention that each token receives, and the attention of one marked position.

A token attends only inside its window, so a map shows one stage. Both kinds are averages over the heads and blocks of
the stage, whose windows alternate between regular and shifted ones:

- received: the sum over all queries of their attention to a token. The average is 1 (without padding).
- marked: the attention of the token at one position of the image. It sums to 1, and is 0 outside of its windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.backbone import backbone_of
from swinv2_train.models.block import SwinBlock
from swinv2_train.models.geometry import Window, from_windows, to_windows
from swinv2_train.models.state import evaluating
from swinv2_train.tracking.figures import image_grid

_SIDE = 192
_STRENGTH = 0.65
"""Opacity of the colors over the image."""


@dataclass(frozen=True)
class StageAttention:
    """Maps (h, w) float32 of one stage, with an entry for every token."""

    received: Tensor
    marked: Tensor | None
    """None without a marked position."""


@torch.no_grad()
def attention_maps(
    model: nn.Module, image: Tensor, position: tuple[float, float] | None = None
) -> list[StageAttention]:
    """Return the maps of every stage, on the CPU, whatever the attention backend of the model.

    The scores of one block are in memory at a time, as with the reference backend.

    Args:
        model: a backbone, or any model that contains one.
        image: (1, C, H, W), normalized, on the model's device.
        position: marked position (x, y), as fractions of the width and the height.
    """
    backbone = backbone_of(model)
    with evaluating(model), _recorded(backbone, position) as blocks:
        backbone(image)
    found = []
    for stage in backbone.layers:
        maps = [blocks[block] for block in stage.blocks]
        means = torch.stack([torch.stack(pair) for pair in maps]).mean(dim=0).cpu()
        found.append(StageAttention(means[0], means[1] if position is not None else None))
    return found


@contextmanager
def _recorded(backbone: nn.Module, position: tuple[float, float] | None) -> Iterator[dict[nn.Module, Any]]:
    """Record both maps of every block during the forward passes in this context."""
    blocks: dict[nn.Module, Any] = {}
    handles = []

    def record(block: SwinBlock, attention: WindowAttention, args: tuple) -> None:
        x, window, shift, *_ = args  # images have no padding in time
        weights = attention.weights(x, window, shift).float().mean(dim=2)[0]
        sides = sizes[block]
        everyone = torch.ones(sides, device=x.device)
        blocks[block] = [
            reached(weights, everyone, window, shift),
            *_marked(weights, everyone, position, window, shift),
        ]

    sizes: dict[nn.Module, Window] = {}
    try:
        for block in (module for module in backbone.modules() if isinstance(module, SwinBlock)):
            handles.append(
                block.register_forward_pre_hook(lambda block, args: sizes.update({block: tuple(args[0].shape[1:-1])}))
            )
            handles.append(
                block.attn.register_forward_pre_hook(
                    lambda attention, args, block=block: record(block, attention, args)
                )
            )
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _marked(
    weights: Tensor, like: Tensor, position: tuple[float, float] | None, window: Window, shift: Window
) -> list[Tensor]:
    if position is None:
        return []
    height, width = like.shape
    x, y = position
    query = torch.zeros_like(like)
    query[min(int(y * height), height - 1), min(int(x * width), width - 1)] = 1
    return [reached(weights, query, window, shift)]


def reached(weights: Tensor, queries: Tensor, window: Window, shift: Window) -> Tensor:
    """Return the attention that every token receives from weighted queries, (h, w).

    Args:
        weights: (nW, N, N), the attention of each query of a window to its keys.
        queries: (h, w), the weight of every token as a query.
    """
    sides = queries.shape
    padding = [-side % extent for side, extent in zip(sides, window, strict=True)]
    padded = F.pad(queries, (0, padding[1], 0, padding[0]))
    rolled = padded.roll(tuple(-offset for offset in shift), dims=(0, 1))
    own = to_windows(rolled[None, ..., None], window, 1, 1)[0, 0, :, 0, :, 0]
    sums = torch.einsum("wq,wqk->wk", own, weights)
    maps = from_windows(sums[None, None, :, None, :, None], window, tuple(padded.shape))[0, ..., 0]
    return maps.roll(shift, dims=(0, 1))[: sides[0], : sides[1]]


def attention_figure(
    images: Sequence[Image.Image],
    names: Sequence[str],
    maps: Sequence[Sequence[StageAttention]],
    position: tuple[float, float] | None,
    footer: str,
) -> Image.Image:
    """Draw a row per image, and with a position a second one: the image, then the map of every stage over it.

    Args:
        images: as the model sees them.
    """
    rows, titles = [], []
    for image, name, stages in zip(images, names, maps, strict=True):
        picture = _enlarged(image.convert("RGB"))
        rows.append([picture, *(_overlay(picture, stage.received) for stage in stages)])
        titles.append(f"{name}\nreceived")
        if position is not None:
            marked = [_overlay(picture, stage.marked) for stage in stages if stage.marked is not None]
            rows.append([_with_mark(each, position) for each in (picture, *marked)])
            titles.append("of the mark")
    sizes = [tuple(stage.received.shape) for stage in maps[0]]
    columns = ["image", *(f"stage {number} ({h}x{w})" for number, (h, w) in enumerate(sizes, 1))]
    return image_grid(rows, columns, titles, footer)


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = _SIDE / max(picture.size)
    return picture.resize(tuple(max(1, round(side * factor)) for side in picture.size), Image.Resampling.LANCZOS)


def _overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    """Return the gray image with the values in colors over it, from 0 to their maximum; a square is a token."""
    from matplotlib import colormaps

    shares = (values / values.max().clamp(min=1e-12)).numpy()
    colors = Image.fromarray((colormaps["inferno"](shares)[..., :3] * 255).astype(np.uint8))
    gray = picture.convert("L").convert("RGB")
    return Image.blend(gray, colors.resize(picture.size, Image.Resampling.NEAREST), _STRENGTH)


def _with_mark(picture: Image.Image, position: tuple[float, float]) -> Image.Image:
    picture = picture.copy()
    x, y = (round(share * side) for share, side in zip(position, picture.size, strict=True))
    draw = ImageDraw.Draw(picture)
    for width, color in ((5, "black"), (2, "white")):
        draw.line((x - 7, y, x + 7, y), color, width)
        draw.line((x, y - 7, x, y + 7), color, width)
    return picture
