"""A model filled by formulas, and numbers computed with the official implementation for it (float64, eval mode)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from swinv2_train.config.model import ModelConfig

SIMMIM_LOSS = 1.1227491903
"""Masked L1 on the plain image; masks of `golden_token_mask`, image of 64 pixels, model of case A."""
SIMMIM_GRADIENT_NORMS = {
    "": 1.3921624661,  # all parameters
    "mask_token": 0.2013150880,
    "encoder.layers.0.blocks.1.attn.logit_scale": 0.0007042744,
    "encoder.layers.1.blocks.0.attn.cpb_mlp.0.weight": 0.0424249296,
    "decoder.0.weight": 0.1929390195,
}

CASES = {
    "A": (64, {"window": 4}, (-0.71471049, 0.43392326, -0.29647899, 0.25508513, 0.10043175)),
    "B": (128, {"window": 8}, (-0.56266199, 0.58586227, -0.42839831, -0.29325926, 0.2087636)),
    "C": (
        128,
        {"window": 8, "pretrained_window": [4, 4, 4, 2]},
        (-0.51208091, 0.60500189, -0.43034891, -0.23916177, 0.11118359),
    ),
    "D": (
        64,
        {"window": 4, "absolute_position": True},
        (1.17421765, 0.94653213, -0.93731553, -2.45521852, 0.78271969),
    ),
    # A side of a map is not larger than the window, and the map is not square: here the rules differ.
    "E": (
        (64, 128),
        {"window": 2, "window_rule": "official"},
        (1.07531267, 1.14182048, -0.37547943, 0.62875144, -0.40152486),
    ),
    "F": (
        (128, 64),
        {"window": 2, "window_rule": "official"},
        (0.80653807, -0.36357691, -0.15209053, 1.59293867, -0.18467971),
    ),
    "G": (
        (64, 128),
        {"window": 4, "window_rule": "official"},
        (0.11142692, 1.07953532, -0.00131227, 0.34022679, -0.38175263),
    ),
    "H": (
        (64, 192),
        {"window": 4, "window_rule": "official", "pretrained_window": [4, 4, 2, 2]},
        (-0.54993940, 0.47673111, 0.21450387, -0.07206946, 0.40508146),
    ),
}
"""Per case: side or (height, width) of the image, fields of the config, the five logits."""


def golden_config(**overrides: object) -> ModelConfig:
    """The small model of all cases; the cases' fields come as overrides."""
    fields = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window": 4, "drop_path": 0.0}
    return ModelConfig(name="golden", **{**fields, **overrides})


@torch.no_grad()
def fill_parameters(model: nn.Module) -> None:
    """Fill every parameter from its index in `model.parameters()`, its name and its shape, in float64 arithmetic."""
    for index, (name, parameter) in enumerate(model.named_parameters()):
        k = torch.arange(parameter.numel(), dtype=torch.float64)
        values = torch.sin(0.013 * k**2 + 0.37 * k + index).view(parameter.shape)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            values = 1 + 0.2 * values
        elif name.endswith("logit_scale"):
            values = 2.3 + 0.5 * values
        elif "cpb_mlp" in name:
            values = 0.3 * values
        elif parameter.dim() > 1:
            values = values * math.sqrt(2 / parameter[0].numel())
        else:
            values = 0.1 * values
        parameter.copy_(values)


def golden_images(size: int | tuple[int, int]) -> Tensor:
    """(1, 3, H, W) float64; one number is the side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    k = torch.arange(3 * height * width, dtype=torch.float64)
    return (torch.cos(0.011 * k) + torch.sin(1.7e-5 * k**2)).view(1, 3, height, width)


def golden_token_mask() -> Tensor:
    """(1, 16, 16) bool: the top left and the bottom right quadrant of the tokens of a 64 pixel image."""
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, :8, :8] = mask[:, 8:, 8:] = True
    return mask
