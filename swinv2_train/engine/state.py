"""All that a resume needs besides tensors.

The order of samples, their augmentation, masks and stochastic depth are functions of the seed and the sample position,
and the learning rate of the step, so there is no random state and no cursor to save: the step says it all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class TrainState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    samples_seen: int = 0
    """Samples consumed: step * global batch."""
    skipped_steps: int = 0
    """Steps whose update was skipped because a gradient was not finite."""
    broken_samples: int = 0
    """Samples that could not be read and were replaced."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
