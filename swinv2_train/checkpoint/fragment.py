"""The unit that checkpoints are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fragment:
    """A run of consecutive elements of one tensor of the model, all that a checkpoint has of them.

    Of a parameter that trains, `weight`, `exp_avg` and `exp_avg_sq` are 1-D fp32 views into the optimizer's memory, all
    of the same length: writing to them changes the optimizer's state. `ema`, the moving average of the weight, is of
    the same kind. Of a frozen parameter and of a buffer there is only `weight`, a 1-D view of the model's own memory in
    its dtype.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    start: int
    """The first element of the run in the flattened tensor."""
    weight: torch.Tensor
    exp_avg: torch.Tensor | None = None
    """None of what does not train."""
    exp_avg_sq: torch.Tensor | None = None
    ema: torch.Tensor | None = None
    """None where the run keeps no average, and of what does not train: its average is the weight itself."""
    is_buffer: bool = False

    @property
    def trains(self) -> bool:
        """Whether the optimizer updates it."""
        return self.exp_avg is not None
