"""Initial weights of the official code, for a model that was just built or that came from the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from swinv2_train.models.attention import WindowAttention
from swinv2_train.models.layers import LayerNorm

LOG_SCALE = math.log(10.0)
"""Initial logit scale: a temperature of 0.1."""


@torch.no_grad()
def init_weights(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give every parameter its initial value.

    Linear layers: normal of width 0.02, bias 0. Norms: 1 and 0, but 0 and 0 at the end of a res-post-normed branch, so
    that every such block starts as the identity. Convolutions: torch's default. Position embedding, bias tables and
    mask token: normal of width 0.02. (The official code truncates its normals at +-2, which is a hundred times their
    width: no truncation.)

    Values are drawn in float32 on the device of the generator and then moved, so a CPU generator gives the same weights
    on any device and the same up to rounding in any dtype.

    Args:
        generator: None draws from torch's global generators.
    """
    for module in model.modules():
        if isinstance(module, WindowAttention):
            if module.logit_scale is not None:
                module.logit_scale.fill_(LOG_SCALE)
            module.q_bias.zero_()
            module.v_bias.zero_()
        elif isinstance(module, nn.Linear):
            _draw(module.weight, generator, _normal)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, LayerNorm):
            module.weight.fill_(module.initial_weight)
            module.bias.zero_()
        elif isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in (module.weight, module.bias):
                _draw(parameter, generator, lambda values, g, bound=bound: values.uniform_(-bound, bound, generator=g))
        for own, parameter in module.named_parameters(recurse=False):
            if own in ("absolute_pos_embed", "relative_position_bias_table", "mask_token"):
                _draw(parameter, generator, _normal)


def _normal(values: Tensor, generator: torch.Generator | None) -> None:
    values.normal_(std=0.02, generator=generator)


def _draw(
    parameter: Tensor, generator: torch.Generator | None, fill: Callable[[Tensor, torch.Generator | None], object]
) -> None:
    device = parameter.device if generator is None else generator.device
    values = torch.empty(parameter.shape, dtype=torch.float32, device=device)
    fill(values, generator)
    parameter.copy_(values)
