"""Everything other than tensors that a resume needs.

The order of samples, their augmentation, masks, and stochastic depth are functions of the seed and the sample position;
the learning rate is a function of the step. So no random state or cursor is saved: the step and the avoided batches
determine everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Progress of a run."""

    step: int = 0
    """Optimizer steps taken, including skipped ones."""
    samples_seen: int = 0
    """Samples consumed: step * global batch."""
    skipped_steps: int = 0
    """Steps whose update was skipped because of bad numbers."""
    skipped_in_row: int = 0
    """Number of consecutive skipped steps up to now."""
    norm_spikes_in_row: int = 0
    """Number of those that were rejected only for a spike of the gradient norm."""
    broken_samples: int = 0
    """Samples that could not be read and were replaced."""
    rollbacks: int = 0
    """Number of times that the run returned to a checkpoint because of a spike."""
    avoided_batches: list[int] = field(default_factory=list)
    """Batches that rollbacks excluded for good, ascending; batch b contains the sample positions that start at
    b * global batch."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last good steps, oldest first: the reference for spikes."""
    grad_norms: list[float] = field(default_factory=list)
    """Gradient norms of the last good steps."""

    @property
    def batch(self) -> int:
        """Batch of the next step: the `step`-th of those that are not avoided."""
        return self._batch_of(self.step)

    def _batch_of(self, step: int) -> int:
        batch = step
        for avoided in self.avoided_batches:
            batch += avoided <= batch
        return batch

    def avoid(self, batches: Iterable[int]) -> None:
        """Exclude batches from now on; those that are already consumed are ignored."""
        self.avoided_batches = sorted({*self.avoided_batches, *(batch for batch in batches if batch >= self.batch)})

    def comes_to(self, later: TrainState) -> bool:
        """Return whether the batches consumed so far are the first ones that `later` consumed."""
        newest = self._batch_of(self.step - 1) if self.step else -1
        passed = [[batch for batch in state.avoided_batches if batch < newest] for state in (self, later)]
        return self.step <= later.step and passed[0] == passed[1] and newest not in later.avoided_batches

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
