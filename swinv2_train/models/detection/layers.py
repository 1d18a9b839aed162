"""Layers of the heads with the initial weights of mmdetection. Biases start at 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from swinv2_train.models.init import draw_normal, draw_uniform

CLASS_STD = 0.01
"""Standard deviation of the initial weights of classifiers. mmdetection draws those of masks and of the semantic branch
with Kaiming's, which is larger the fewer classes there are."""


class Convolution(nn.Conv2d):
    """Convolution with a bias that keeps the size of its map.

    Args:
        std: standard deviation of the initial weights; None: Kaiming, by the outputs, for a ReLU.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, *, std: float | None = None) -> None:
        super().__init__(in_channels, channels, kernel, padding=kernel // 2)
        self.initial_std = math.sqrt(2 / (channels * kernel**2)) if std is None else std

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        draw_normal(self.weight, generator, self.initial_std)
        _zero_bias(self)


class PyramidConvolution(Convolution):
    """The same with Xavier's uniform initial weights, as in a feature pyramid."""

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        _draw_xavier(self.weight, generator)
        _zero_bias(self)


class Upsampling(nn.ConvTranspose2d):
    """Transposed convolution that doubles the sides of a map: (N, C, H, W) -> (N, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 2, stride=2)

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        draw_normal(self.weight, generator, math.sqrt(2 / (self.in_channels * 4)))
        _zero_bias(self)


class Linear(nn.Linear):
    """Linear layer.

    Args:
        std: standard deviation of the initial weights; None: Xavier's uniform ones.
    """

    def __init__(self, inputs: int, outputs: int, *, std: float | None = None) -> None:
        super().__init__(inputs, outputs)
        self.initial_std = std

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        if self.initial_std is None:
            _draw_xavier(self.weight, generator)
        else:
            draw_normal(self.weight, generator, self.initial_std)
        _zero_bias(self)


class ClassOffsets(nn.Module):
    """Linear layer to the offsets of a box for every class: (N, inputs) -> (N, num_classes, 4).

    Its parameters have one row per class, which `init_from` can take by the name of the class.
    """

    def __init__(self, inputs: int, num_classes: int, std: float) -> None:
        super().__init__()
        self.initial_std = std
        self.weight = nn.Parameter(torch.empty(num_classes, 4, inputs))
        self.bias = nn.Parameter(torch.empty(num_classes, 4))

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        draw_normal(self.weight, generator, self.initial_std)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(1, (-1, 4))


def _draw_xavier(weight: Tensor, generator: torch.Generator | None) -> None:
    cells = weight[0, 0].numel()
    draw_uniform(weight, generator, math.sqrt(6 / (cells * (weight.shape[0] + weight.shape[1]))))


def _zero_bias(layer: nn.Module) -> None:
    assert isinstance(layer.bias, Tensor)
    layer.bias.zero_()
