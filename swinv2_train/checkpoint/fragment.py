"""The unit that checkpoints are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fragment:
    """A run of consecutive elements of one parameter that this rank owns.

    `weight`, `exp_avg` and `exp_avg_sq` are 1-D fp32 views into the optimizer's memory, all of the same length: writing
    to them changes the optimizer's state. `ema`, the moving average of the weight, is of the same kind.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    start: int
    """The first element of the run in the flattened parameter."""
    weight: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    ema: torch.Tensor | None = None
    """None where the run keeps no average."""
