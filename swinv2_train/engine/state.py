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
    """Samples consumed: step * global batch, unless the global batch changed."""
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
    `changed_position` + b * global batch."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last good steps, oldest first: the reference for spikes."""
    grad_norms: list[float] = field(default_factory=list)
    """Gradient norms of the last good steps."""
    early_metric: str = ""
    """Metric of `eval.early_stopping` that the next fields are about; empty before its first evaluation."""
    early_best: float | None = None
    """Best value so far; None before the first finite one."""
    early_best_step: int = 0
    """Step of that value."""
    early_waited: int = 0
    """Evaluations in a row without an improvement."""
    early_step: int = -1
    """Step of the last evaluation that was counted; -1 before the first."""
    changed_step: int = 0
    """Step at which the global batch last changed; batches are counted from there. 0: it never did."""
    changed_samples: int = 0
    """Samples consumed up to that step."""
    changed_position: int = 0
    """Sample position at which batch 0 starts."""

    @property
    def batch(self) -> int:
        """Batch of the next step: of those that are not avoided, the one after as many as there were steps."""
        return self._batch_of(self.step)

    def first_position(self, batch: int, global_batch: int) -> int:
        """Return the first sample position of a batch."""
        return self.changed_position + batch * global_batch

    def change_batch(self, before: int, now: int) -> None:
        """Go on with another global batch, at the next sample position.

        A new batch that overlaps an avoided one is avoided as a whole.
        """
        start = self.first_position(self.batch, before)
        avoided = [self.first_position(batch, before) for batch in self.avoided_batches if batch >= self.batch]
        self.avoided_batches = sorted({
            batch
            for first in avoided
            for batch in range((first - start) // now, -(-(first + before - start) // now))
        })  # fmt: skip
        self.changed_step, self.changed_samples, self.changed_position = self.step, self.samples_seen, start
        self.grad_norms.clear()  # their level depends on the batch, so the test for spikes starts over

    def _batch_of(self, step: int) -> int:
        batch = step - self.changed_step
        for avoided in self.avoided_batches:
            batch += avoided <= batch
        return batch

    def avoid(self, batches: Iterable[int]) -> None:
        """Exclude batches from now on; those that are already consumed are ignored."""
        self.avoided_batches = sorted({*self.avoided_batches, *(batch for batch in batches if batch >= self.batch)})

    def comes_to(self, later: TrainState) -> bool:
        """Return whether the batches consumed so far are the first ones that `later` consumed."""
        newest = self._batch_of(self.step - 1) if self.step > self.changed_step else -1
        passed = [[batch for batch in state.avoided_batches if batch < newest] for state in (self, later)]
        same_batches = (self.changed_step, self.changed_position) == (later.changed_step, later.changed_position)
        return (
            same_batches and self.step <= later.step and passed[0] == passed[1] and newest not in later.avoided_batches
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; without the newer ones that have their default, so that earlier versions can read it."""
        unset = TrainState()
        newer = [name for name in vars(unset) if name.startswith(("early_", "changed_"))]
        left_out = [name for name in newer if getattr(self, name) == getattr(unset, name)]
        return {name: value for name, value in asdict(self).items() if name not in left_out}
