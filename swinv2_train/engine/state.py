"""All that a resume needs besides tensors.

The order of samples, their augmentation, masks and stochastic depth are functions of the seed and the sample position,
and the learning rate of the step, so there is no random state and no cursor to save: the step, and the batches that
were left out, say it all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    samples_seen: int = 0
    """Samples consumed: step * global batch."""
    skipped_steps: int = 0
    """Steps whose update was left out because the numbers were bad."""
    skipped_in_row: int = 0
    """How many of them are the last ones without a good step in between."""
    norm_spikes_in_row: int = 0
    """How many of those were refused for a spike of the gradient norm alone."""
    broken_samples: int = 0
    """Samples that could not be read and were replaced."""
    rollbacks: int = 0
    """How often the run went back to a checkpoint because of a spike."""
    avoided_batches: list[int] = field(default_factory=list)
    """Batches that rollbacks have left out for good, ascending; batch b holds the sample positions from
    b * global batch on."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last good steps, oldest first: what a spike is measured against."""
    grad_norms: list[float] = field(default_factory=list)
    """Gradient norms of the last good steps."""

    @property
    def batch(self) -> int:
        """The batch of the next step: the `step`-th of those that are not avoided."""
        return self._batch_of(self.step)

    def _batch_of(self, step: int) -> int:
        batch = step
        for avoided in self.avoided_batches:
            batch += avoided <= batch
        return batch

    def avoid(self, batches: Iterable[int]) -> None:
        """Leave batches out from here on; those that lie behind already are not touched."""
        self.avoided_batches = sorted({*self.avoided_batches, *(batch for batch in batches if batch >= self.batch)})

    def comes_to(self, later: TrainState) -> bool:
        """Whether the batches consumed so far are those that `later` consumed first."""
        newest = self._batch_of(self.step - 1) if self.step else -1
        passed = [[batch for batch in state.avoided_batches if batch < newest] for state in (self, later)]
        return self.step <= later.step and passed[0] == passed[1] and newest not in later.avoided_batches

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
