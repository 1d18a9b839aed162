"""Learning rate and averaging decay as pure functions of the step: nothing to save or restore."""

from __future__ import annotations

import math

from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import OptimConfig


def learning_rate(step: int, optim: OptimConfig, plan: Plan) -> float:
    """Return the learning rate of step `step` (the first is 0).

    Linear warm-up from `plan.warmup_lr`; then the schedule, whose clock starts at the end of the warm-up, as in the
    official Swin code (timm's `warmup_prefix`). Multistep counts its milestones from the start of the run.
    """
    now, total = step + plan.ahead, plan.total_steps + plan.ahead
    if now < plan.warmup_steps:
        return plan.warmup_lr + (plan.peak_lr - plan.warmup_lr) * now / plan.warmup_steps
    progress = min(1.0, (now - plan.warmup_steps) / max(1, total - plan.warmup_steps))
    if optim.schedule == "cosine":
        return plan.min_lr + 0.5 * (plan.peak_lr - plan.min_lr) * (1 + math.cos(math.pi * progress))
    if optim.schedule == "linear":
        return plan.peak_lr + (plan.min_lr - plan.peak_lr) * progress
    if optim.schedule == "multistep":
        return plan.peak_lr * optim.gamma ** sum(now >= mark for mark in plan.milestones)
    return plan.peak_lr


def ema_decay(step: int, optim: OptimConfig) -> float:
    """Return the decay of the moving average of the weights in step `step` (the first is 0).

    It starts low, like TensorFlow's ExponentialMovingAverage with `num_updates`, so that the average does not depend on
    the initial weights.
    """
    return min(optim.ema_decay, (1 + step) / (10 + step))
