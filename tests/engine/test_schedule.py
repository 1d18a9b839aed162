"""Learning rates against timm's schedulers, which the official code uses."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import OptimConfig
from swinv2_train.engine.schedule import learning_rate

PLAN = Plan(
    world_size=1, num_samples=1000, global_batch=10, micro_batch=10, accumulation=1, total_steps=100, warmup_steps=20,
    milestones=(60, 80), peak_lr=1e-3, warmup_lr=1e-6, min_lr=1e-5,
)  # fmt: skip


def _rates(scheduler: object, optimizer: torch.optim.Optimizer) -> list[float]:
    rates = []
    for step in range(PLAN.total_steps):
        scheduler.step_update(step)  # type: ignore[attr-defined]
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_cosine_is_timms_with_warm_up_prefix() -> None:
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PLAN.peak_lr)
    scheduler = CosineLRScheduler(
        optimizer,
        PLAN.total_steps - PLAN.warmup_steps,
        lr_min=PLAN.min_lr,
        warmup_t=PLAN.warmup_steps,
        warmup_lr_init=PLAN.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
        cycle_limit=1,
    )
    ours = [learning_rate(step, OptimConfig(schedule="cosine"), PLAN) for step in range(PLAN.total_steps)]
    assert ours == pytest.approx(_rates(scheduler, optimizer), rel=1e-9)


def test_multistep_drops_where_torchs_does() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PLAN.peak_lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(PLAN.milestones), gamma=0.1)
    for step in range(PLAN.total_steps):
        if step >= PLAN.warmup_steps:
            ours = learning_rate(step, OptimConfig(schedule="multistep", gamma=0.1), PLAN)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        scheduler.step()


def test_linear_ends_at_the_minimum_and_constant_stays() -> None:
    linear, constant = OptimConfig(schedule="linear"), OptimConfig(schedule="constant")
    assert learning_rate(60, linear, PLAN) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(100, linear, PLAN) == pytest.approx(1e-5)
    assert learning_rate(99, constant, PLAN) == pytest.approx(1e-3)
