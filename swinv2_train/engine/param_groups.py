"""Which parameter is decayed and how fast it learns.

The rule of the official code: matrices and convolution kernels are decayed; everything one-dimensional, every bias, the
CPB networks, bias tables, logit scales, position embeddings and tokens are not. The official SimMIM pretraining means
to follow it too, but compares names without their `encoder.` prefix and so decays CPB matrices and logit scales;
`optim.decay_cpb_and_scale` reproduces that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from swinv2_train.config.schema import OptimConfig

NEVER_DECAYED = ("absolute_pos_embed", "mask_token", "relative_position_bias_table")
CPB_AND_SCALE = ("cpb_mlp", "logit_scale")


def is_decayed(name: str, parameter: nn.Parameter, *, decay_cpb_and_scale: bool) -> bool:
    """Whether weight decay applies to a parameter."""
    if parameter.ndim <= 1 or name.endswith(".bias") or any(part in name for part in NEVER_DECAYED):
        return False
    return decay_cpb_and_scale or not any(part in name for part in CPB_AND_SCALE)


def layer_index(name: str, depths: list[int]) -> int:
    """The layer of a parameter for layer-wise learning-rate decay, from 0 to sum(depths) + 1.

    The official grouping: 0 is the patch embedding and the mask token, block i (counted through all stages) is i + 1,
    a patch merging belongs to the last block of its stage, and everything else (final norm, head, decoder, absolute
    position embedding) is last.
    """
    if "patch_embed" in name or "mask_token" in name:
        return 0
    block = re.search(r"layers\.(\d+)\.blocks\.(\d+)\.", name)
    if block:
        return sum(depths[: int(block[1])]) + int(block[2]) + 1
    downsample = re.search(r"layers\.(\d+)\.downsample\.", name)
    if downsample:
        return sum(depths[: int(downsample[1]) + 1])
    return sum(depths) + 1


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig, depths: list[int]
) -> list[dict]:
    """Groups for AdamW: `params`, `names`, `weight_decay` and `lr_scale` (the factor on the scheduled rate).

    Groups and their members come in a fixed order, the same on every rank.
    """
    last = sum(depths) + 1
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decayed = is_decayed(name, parameter, decay_cpb_and_scale=optim.decay_cpb_and_scale)
        scale = optim.layer_decay ** (last - layer_index(name, depths)) if optim.layer_decay != 1 else 1.0
        key = (scale, optim.weight_decay if decayed else 0.0)
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": key[1], "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
