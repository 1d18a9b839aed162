"""Every recipe whose model fits here takes a real step: its own model, optimizer and loss, on small images."""

from __future__ import annotations

import math

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.ranks import join, leave
from swinv2_train.engine.run import build_model
from swinv2_train.tasks.simmim import SimMIM

FITTING = ["simmim_demo", "simmim_tiny", "simmim_small", "simmim_base", "simmim_large"]


@pytest.mark.parametrize("name", FITTING)
def test_a_recipe_takes_a_step(name: str) -> None:
    overrides = ["data.resolution=96", "optim.global_batch=2", "engine.precision=fp32", "engine.grad_accum_dtype=null"]
    config = compose([f"+experiment={name}", *overrides])
    plan = make_plan(config, 1, 1_000_000)
    ranks = join("cpu", 5)
    try:
        task = SimMIM(config, [0.5] * 3, [0.25] * 3)
        engine = Engine(build_model(task, config, ranks.device), config, plan, ranks)
        before = {piece.name: piece.weight.clone() for piece in engine.fragments() if "norm1" in piece.name}
        batch = task.example_batch(2)
        losses = task.loss(engine.model, batch).total / task.weight(batch)
        engine.backward(losses)
        assert engine.step(1e-3)
        assert math.isfinite(losses.item())
        assert math.isfinite(engine.grad_norm)
        assert engine.grad_norm > 0
        moved = [
            piece.name
            for piece in engine.fragments()
            if piece.name in before and (piece.weight != before[piece.name]).any()
        ]
        assert len(moved) == len(before) > 0
        engine.close()
    finally:
        leave()
