"""Unit of storage of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fragment:
    """A range of consecutive elements of one tensor of the model, with everything that a checkpoint stores for them.

    For a trained parameter, `weight`, `exp_avg`, and `exp_avg_sq` are 1-D fp32 views of the optimizer's memory, all of
    the same length: writing to them changes the optimizer's state. `ema`, the moving average of the weight, has the
    same form. A frozen parameter or a buffer has only `weight`, a 1-D view of the model's own memory in the model's
    dtype.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the full tensor."""
    start: int
    """Index of the range's first element in the flattened tensor."""
    weight: torch.Tensor
    exp_avg: torch.Tensor | None = None
    """None if the parameter is not trained."""
    exp_avg_sq: torch.Tensor | None = None
    ema: torch.Tensor | None = None
    """None if the run keeps no average, or if the parameter is not trained: its average is the weight itself."""
    is_buffer: bool = False

    @property
    def trains(self) -> bool:
        """True if the optimizer updates the parameter."""
        return self.exp_avg is not None
