"""Early stopping: evaluations without an improvement, counted in the state of the run, so that a resume counts on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from swinv2_train.config.metrics import better_end
from swinv2_train.config.stopping import EarlyStoppingConfig
from swinv2_train.engine.state import TrainState


def observe(state: TrainState, settings: EarlyStoppingConfig, metrics: Mapping[str, float]) -> None:
    """Count the evaluation at the current step. One that is repeated after a resume counts once.

    Args:
        metrics: of the evaluation, by name.
    """
    metric = settings.metric
    if metric is None or metric not in metrics:
        return
    if state.early_metric != metric:  # the first evaluation, or the config names another metric since
        state.early_metric, state.early_best, state.early_waited, state.early_step = metric, None, 0, -1
    if state.step <= state.early_step:
        return
    state.early_step = state.step
    value = metrics[metric]
    if _improves(value, state.early_best, better_end(metric), settings.min_delta):
        state.early_best, state.early_best_step, state.early_waited = value, state.step, 0
    else:
        state.early_waited += 1


def _improves(value: float, best: float | None, better: str | None, min_delta: float) -> bool:
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    gain = value - best if better == "max" else best - value
    return gain > 0 and gain >= min_delta


def stopping_reason(state: TrainState, settings: EarlyStoppingConfig) -> str | None:
    """Return why the run ends at the current step, as a clause; None if it goes on.

    With a larger patience, or without a metric, a run that ended early goes on.
    """
    metric = settings.metric
    if metric is None or state.early_metric != metric or state.early_waited < settings.patience:
        return None
    best = "has had no finite value"
    if state.early_best is not None:
        least = f" by {settings.min_delta:g} or more" if settings.min_delta else ""
        best = f"has not improved{least} since step {state.early_best_step} ({state.early_best:.6g})"
    return f"{metric} {best}, in {state.early_waited} evaluations (eval.early_stopping)"
