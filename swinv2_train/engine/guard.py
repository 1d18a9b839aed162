"""Check of the numbers of a step before they reach the weights.

A non-finite loss or gradient is always rejected. A spike is a value far above the median of the last good steps,
measured in median absolute deviations (Leys et al. 2013), which a few earlier outliers hardly affect. All ranks check
the same numbers, so they reach the same decision without communication.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from swinv2_train.config.schema import GuardConfig
from swinv2_train.engine.state import TrainState

MAD_TO_SIGMA = 1.4826
"""The median absolute deviation of normally distributed numbers times this is their standard deviation."""
NORM_SPIKES_IN_ROW = 3
"""A gradient norm that stays high for more steps than this, while the loss is normal, is the run's new level and not a
spike. Accept it, clip it as usual, and restart the norm test. Rejecting it forever would stop a healthy run, because
rejected steps do not move the median."""


@dataclass(frozen=True)
class Refusal:
    """Reason to skip a step's update."""

    reason: str
    """Clause that names the number and the problem."""
    spike: bool
    """True if the numbers are finite: then `guard.policy` decides the response."""
    norm_only: bool = False
    """True for a spike of the gradient norm with a normal loss."""


def spike_limit(window: list[float], zscore: float, ratio: float) -> float:
    """Return the limit above which a number is a spike, given those in `window` (not empty)."""
    middle = median(window)
    deviation = MAD_TO_SIGMA * median(abs(value - middle) for value in window)
    return max(middle + zscore * deviation, ratio * middle)


class Guard:
    """Rolling test over the last good steps, which are stored in the run's state."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config

    def judge(self, loss: float, grad_norm: float, state: TrainState) -> Refusal | None:
        """Check a step before its update; None accepts it.

        Args:
            loss: mean loss of the global batch.
            grad_norm: norm of its gradient over all parameters, before clipping.
        """
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return Refusal(f"the {name} is {value}", spike=False)
        config = self._config
        if config.policy == "off":
            return None
        for name, value, window, ratio in (
            ("loss", loss, state.losses, config.loss_ratio),
            ("gradient norm", grad_norm, state.grad_norms, config.grad_norm_ratio),
        ):
            if len(window) < config.min_steps:
                continue
            limit = spike_limit(window, config.zscore, ratio)
            if value > limit and not (name == "gradient norm" and state.norm_spikes_in_row >= NORM_SPIKES_IN_ROW):
                usual = f"the median of the last {len(window)} good steps is {median(window):.4g}"
                reason = f"the {name} {value:.4g} is a spike above {limit:.4g} ({usual})"
                return Refusal(reason, spike=True, norm_only=name == "gradient norm")
        return None

    def refuse(self, refusal: Refusal, state: TrainState) -> None:
        """Record that a step's update was skipped."""
        state.norm_spikes_in_row = state.norm_spikes_in_row + 1 if refusal.norm_only else 0

    def accept(self, loss: float, grad_norm: float, state: TrainState) -> None:
        """Record the numbers of a step whose update was applied; `state` is still that before the step."""
        if state.norm_spikes_in_row >= NORM_SPIKES_IN_ROW:
            state.grad_norms.clear()
        state.norm_spikes_in_row = 0
        for window, value in ((state.losses, loss), (state.grad_norms, grad_norm)):
            window.append(value)
            del window[: -self._config.window]


def mostly_skipped(state: TrainState) -> str | None:
    """Return why a run that took all its steps failed nevertheless: most of them were skipped. None if not."""
    if 2 * state.skipped_steps <= state.step:
        return None
    return (
        f"{state.skipped_steps} of {state.step} steps were skipped, so the run has learned almost nothing; its last "
        "state is saved, and <run>/incidents records the causes: lower optim.lr, use engine.precision=bf16 or fp32 "
        "instead of fp16, or fix the data, and start over with another run.dir"
    )
