"""Learning rates against timm's schedulers, which the official code uses."""

from __future__ import annotations

import pytest
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler

from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import OptimConfig
from swinv2_train.engine.schedule import learning_rate

PLAN = Plan(
    world_size=1, num_samples=1000, global_batch=10, micro_batch=10, accumulation=1, total_steps=100, warmup_steps=20,
    milestones=(60, 80), peak_lr=1e-3, warmup_lr=1e-6, min_lr=1e-5,
)  # fmt: skip


def _timm_rates(kind: str) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PLAN.peak_lr)
    warmup = {"warmup_t": PLAN.warmup_steps, "warmup_lr_init": PLAN.warmup_lr, "t_in_epochs": False}
    if kind == "cosine":
        steps = PLAN.total_steps - PLAN.warmup_steps
        scheduler = CosineLRScheduler(optimizer, steps, lr_min=PLAN.min_lr, warmup_prefix=True, cycle_limit=1, **warmup)
    else:
        scheduler = MultiStepLRScheduler(optimizer, list(PLAN.milestones), decay_rate=0.1, warmup_prefix=False, **warmup)
    rates = []
    for step in range(PLAN.total_steps):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("kind", ["cosine", "multistep"])
def test_equal_to_timm(kind: str) -> None:
    optim = OptimConfig(schedule=kind, gamma=0.1)
    ours = [learning_rate(step, optim, PLAN) for step in range(PLAN.total_steps)]
    assert ours == pytest.approx(_timm_rates(kind), rel=1e-9)


def test_linear_ends_at_the_minimum_and_constant_stays() -> None:
    linear, constant = OptimConfig(schedule="linear"), OptimConfig(schedule="constant")
    assert learning_rate(60, linear, PLAN) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(100, linear, PLAN) == pytest.approx(1e-5)
    assert learning_rate(99, constant, PLAN) == pytest.approx(1e-3)
