"""The position bias of a window: one value per head and offset, from a network or from a table.

Functions of the weights, not a module: the weights belong to the attention module, under the official names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.model import CPB_HIDDEN
from swinv2_train.models.geometry import Window, relative_coordinates, resize_table
from swinv2_train.models.precision import at_least_float32, without_autocast

BIAS_RANGE = 16.0
"""The position bias from a network is between 0 and this (official code)."""


def bias_network(axes: int, num_heads: int) -> nn.Sequential:
    """Build the network of log-CPB and linear-CPB: input an offset along each axis, output a bias per head."""
    # Build the last layer first: layers draw values from torch's global generator when they are built, and another
    # order would change seeded models.
    last = nn.Linear(CPB_HIDDEN, num_heads, bias=False)
    return nn.Sequential(nn.Linear(axes, CPB_HIDDEN), nn.ReLU(), last)


def network_bias(network: nn.Sequential, window: Window, pretrained: Window, *, logarithmic: bool) -> Tensor:
    """Return the bias (h, *offsets) of a network for the offsets of a window: in at least float32, from 0 to 16.

    Args:
        pretrained: window the weights were trained with, see `relative_coordinates`.
        logarithmic: space the offsets logarithmically (log-CPB).
    """
    hidden, _, out = network
    wide = at_least_float32(out.weight.dtype)
    with without_autocast(out.weight):
        coordinates = relative_coordinates(window, pretrained, out.weight.device, logarithmic=logarithmic)
        x = F.relu(F.linear(coordinates.to(wide), hidden.weight.to(wide), hidden.bias.to(wide)))
        # Apply the sigmoid to the offsets, before they are spread over the N * N pairs: far fewer elements.
        table = BIAS_RANGE * torch.sigmoid(F.linear(x, out.weight.to(wide)))
    return table.t().reshape(-1, *(2 * side - 1 for side in window))


def table_bias(stored: Tensor, window: Window, pretrained: Window) -> Tensor:
    """Return the bias (h, *offsets) of a table, in at least float32, for another window than its own as well.

    Heights, widths, and longer times are interpolated. A shorter time takes the offsets that it has, as Video Swin
    does: a distance of one frame keeps its meaning in a short clip.

    Args:
        stored: (product of offsets, h), of the window `pretrained`.
    """
    with without_autocast(stored):
        table = stored.to(at_least_float32(stored.dtype)).t()
        table = table.reshape(stored.shape[1], *(2 * side - 1 for side in pretrained))
        if len(window) > 2 and window[0] < pretrained[0]:
            table = table[:, pretrained[0] - window[0] : pretrained[0] + window[0] - 1]
        return resize_table(table, window)
