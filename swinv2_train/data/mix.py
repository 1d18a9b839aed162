"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) of two samples, on 8 and 16 bit images.

Every sample has its own mixing ratio and kind (timm's mode `elem`). Because mixing operates on the stored values, a
mixed sample is self-contained and can be replayed alone; mixup then rounds integers to the nearest value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.tasks import ClassificationConfig
from swinv2_train.data.pixels import same_depth


@dataclass(frozen=True)
class Mix:
    """The fraction of a sample that remains, and the rectangle that is pasted over it."""

    share: float
    """Fraction of the sample itself; the rest is its partner's."""
    box: tuple[int, int, int, int] | None = None
    """cutmix: top, left, bottom, right of the partner's rectangle; None: mixup."""


def partner_of(position: int, repeats: int) -> int:
    """The position that is mixed into this one: in blocks of 2 * repeats, the one `repeats` further, round in a circle.

    With repeated augmentation these are copies of the other sample of the block.
    """
    block, offset = divmod(position, 2 * repeats)
    return block * 2 * repeats + (offset + repeats) % (2 * repeats)


def draw_mix(config: ClassificationConfig, size: tuple[int, int], rng: np.random.Generator) -> Mix:
    """Draw how a sample of height and width `size` is mixed."""
    # Always draw every number, so that changing one setting does not affect results that depend on the others.
    mixed, switch, row, column = rng.random(4).tolist()
    cut = config.cutmix > 0 and (config.mixup == 0 or switch < config.mix_switch_prob)
    alpha = config.cutmix if cut else config.mixup
    if not alpha or mixed >= config.mix_prob:
        return Mix(1.0)
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(share)
    height, width = size
    tall, wide = (int(side * math.sqrt(1 - share)) for side in size)
    middle = int(row * height), int(column * width)
    top, bottom = max(middle[0] - tall // 2, 0), min(middle[0] + (tall + 1) // 2, height)
    left, right = max(middle[1] - wide // 2, 0), min(middle[1] + (wide + 1) // 2, width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def blend(own: Tensor, other: Tensor, mix: Mix) -> Tensor:
    """Two images (C, H, W) or clips (C, T, H, W), 8 or 16 bit or float32, as one; the arguments stay as they are."""
    if mix.share == 1.0:
        return own
    own, other = same_depth([own, other])
    if mix.box is None:
        mixed = own.to(torch.float32) * mix.share + other.to(torch.float32) * (1 - mix.share)
        return mixed if own.is_floating_point() else mixed.round().to(own.dtype)
    top, left, bottom, right = mix.box
    pasted = own.numpy().copy()  # numpy, because not every version of torch can write into uint16
    pasted[..., top:bottom, left:right] = other[..., top:bottom, left:right].numpy()
    return torch.from_numpy(pasted)
