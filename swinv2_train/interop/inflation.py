"""Tensors of another number of axes or channels: weights of images for clips, other channels of the patch embedding.

An inflated model gives a still clip the features of the image: the patch embedding averages the frames of a patch, and
the position bias does not depend on the time (arXiv 2106.13230, section 3.3, for a bias network).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PATCHES = "patch_embed.proj.weight"
_NETWORK, _TABLE = ".attn.cpb_mlp.0.weight", ".attn.relative_position_bias_table"
_DECODER = ("decoder.0.weight", "decoder.0.bias")


def inflated(key: str, there: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Callable[[Tensor], Tensor], str] | None:
    """Return a function that makes a tensor of a model of clips from that of a model of images, and its description.

    Args:
        key: canonical name.
        there: shape in the model of images.
        shape: shape in the model of clips.

    Returns:
        None if the shapes do not belong to such models.
    """
    if key == PATCHES and len(there) == 4 and len(shape) == 5:
        return lambda weight: inflate_patches(change_channels(weight, shape[1]), shape[2]), _patches_text(there, shape)
    if key.endswith(_NETWORK) and (there[1], shape[1]) == (2, 3):
        return inflate_network, "a column of zeros for the time, on which the position bias does not depend at first"
    if key.endswith(_TABLE) and there[1:] == shape[1:] and _repeats(there, shape):
        offsets = shape[0] // there[0]
        return lambda table: table.repeat(offsets, 1), f"repeated for {offsets} offsets in time"
    if key in _DECODER and there[1:] == shape[1:] and _repeats(there, shape):
        frames = shape[0] // there[0]
        return lambda values: values.repeat(frames, *(1 for _ in there[1:])), f"repeated for {frames} frames"
    return None


def _repeats(there: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return shape[0] > there[0] and shape[0] % there[0] == 0


def _patches_text(there: tuple[int, ...], shape: tuple[int, ...]) -> str:
    channels = "" if there[1] == shape[1] else f"{there[1]} input channels to {shape[1]}, "
    return f"{channels}repeated for {shape[2]} frames of a patch and divided by their number"


def inflate_patches(weight: Tensor, frames: int) -> Tensor:
    """Return a patch embedding (C, channels, p, p) for patches of several frames, (C, channels, frames, p, p)."""
    return weight.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames


def inflate_network(weight: Tensor) -> Tensor:
    """Return the first layer of a bias network (hidden, 2) with a column of zeros for the time: (hidden, 3).

    The column gets a gradient, because its inputs, the offsets in time, are not 0.
    """
    import torch

    return torch.cat([torch.zeros_like(weight[:, :1]), weight], dim=1)


def change_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a patch embedding (C, old, *patch) for another number of input channels, (C, channels, *patch).

    New channels repeat the old ones in turn, and the copies share the old weight; surplus ones are summed in turn.
    Therefore an image with identical values in all channels has the same response before and after.
    """
    import torch

    old = weight.shape[1]
    if channels >= old:
        index = torch.arange(channels) % old
        copies = torch.bincount(index, minlength=old).to(weight.dtype)
        return weight[:, index] / copies[index].view(-1, *(1 for _ in weight.shape[2:]))
    folded = torch.zeros(weight.shape[0], channels, *weight.shape[2:], dtype=weight.dtype)
    return folded.index_add_(1, torch.arange(old) % channels, weight)
