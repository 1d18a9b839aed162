"""Weight decay and learning rate of each parameter.

The rule of the official code: matrices and convolution kernels are decayed; one-dimensional parameters, biases, the
CPB networks, bias tables, logit scales, position embeddings, and tokens are not. The official SimMIM pretraining
intends to follow it too, but compares names without their `encoder.` prefix and therefore decays CPB matrices and
logit scales; `optim.decay_cpb_and_scale` reproduces that.
"""

from __future__ import annotations

import re

from torch import nn

from swinv2_train.config.schema import OptimConfig
from swinv2_train.models.trainable import backbone_name, below, joined, rate_factors

NEVER_DECAYED = ("absolute_pos_embed", "mask_token", "relative_position_bias_table")
CPB_AND_SCALE = ("cpb_mlp", "logit_scale")


def is_decayed(name: str, parameter: nn.Parameter, *, decay_cpb_and_scale: bool) -> bool:
    """Return whether weight decay applies to a parameter."""
    if parameter.ndim <= 1 or name.endswith(".bias") or any(part in name for part in NEVER_DECAYED):
        return False
    return decay_cpb_and_scale or not any(part in name for part in CPB_AND_SCALE)


def layer_index(name: str, depths: list[int], backbone: str | None) -> int:
    """Return the layer of a parameter for layer-wise learning-rate decay, from 0 to sum(depths) + 1.

    The official grouping: 0 is the patch embedding and the mask token, block i (counted through all stages) is i + 1,
    a patch merging belongs to the last block of its stage, and everything else (final norm, head, decoder, absolute
    position embedding) is last.

    Args:
        backbone: name of the backbone in the model, because a head may have layers and blocks too, all of which are
            last; None for a model without one.
    """
    last = sum(depths) + 1
    if backbone is None:
        return last
    if name == joined(backbone.rpartition(".")[0], "mask_token"):  # a sibling of the backbone, which inserts it
        return 0
    if backbone and not below(name, backbone):
        return last
    own = name.removeprefix(f"{backbone}.") if backbone else name
    if own.startswith("patch_embed."):
        return 0
    block = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", own)
    if block:
        return sum(depths[: int(block[1])]) + int(block[2]) + 1
    downsample = re.match(r"layers\.(\d+)\.downsample\.", own)
    if downsample:
        return sum(depths[: int(downsample[1]) + 1])
    return last


def parameter_groups(model: nn.Module, optim: OptimConfig, depths: list[int]) -> list[dict]:
    """Return groups for AdamW: `params`, `names`, `weight_decay`, and `lr_scale` (the factor on the scheduled rate).

    Groups and their members have a fixed order, identical on every rank. Parameters without a gradient are excluded.

    Raises:
        ConfigError: if `optim.lr_scales` has a name that the model does not have.
    """
    last = sum(depths) + 1
    backbone, factors = backbone_name(model), rate_factors(model, optim.lr_scales)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = is_decayed(name, parameter, decay_cpb_and_scale=optim.decay_cpb_and_scale)
        scale = optim.layer_decay ** (last - layer_index(name, depths, backbone)) if optim.layer_decay != 1 else 1.0
        scale *= factors.get(name, 1.0)
        key = (scale, optim.weight_decay if decayed else 0.0)
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": key[1], "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
