"""The loss of a step over the ranks, reduced on the device, for every kind of engine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.launch.ranks import join, leave
from swinv2_train.models.precision import PRECISIONS
from tests.engine.apart import Apart

LAYOUTS = [("fp32", 0, "null"), ("fp32", 1, "null"), ("bf16", 0, "null"), ("bf16", 1, "fp32"), ("bf16", 2, "null")]


def take_steps(result: str, precision: str, stage: int, accumulate: str) -> None:
    """Three steps: one that is applied, one that is refused, and one with a NaN on the last rank."""
    ranks = join("cpu", 1.0)
    options = [f"engine.precision={precision}", f"engine.zero_stage={stage}", f"engine.grad_accum_dtype={accumulate}"]
    config = compose(["+experiment=simmim_demo", *options, "optim.global_batch=4", "optim.clip_norm=0.5"])
    torch.manual_seed(0)
    model = nn.Linear(5, 3).to(PRECISIONS[precision])
    engine = Engine(model, config, make_plan(config, ranks.world_size, 100), ranks)
    found = []
    for step, verdict in enumerate((True, False, True)):
        last = ranks.rank == ranks.world_size - 1
        own = torch.tensor(math.nan if step == 2 and last else 0.1 + ranks.rank + step)
        engine.backward(engine.model(torch.ones(2, 5, dtype=PRECISIONS[precision])).float().square().sum() * own)
        asked: list[float] = []
        applied = engine.step(0.1, lambda norm, v=verdict, seen=asked: seen.append(engine.loss) or v, loss=own)
        found.append({"own": float(own), "loss": engine.loss, "asked": asked, "applied": applied})
    everyone = ranks.gather(found)
    if ranks.is_main:
        Path(result).write_text(json.dumps(everyone))
    engine.close()
    leave()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_gate_knows_the_loss_of_all_ranks(tmp_path: Path, layout: tuple[str, int, str]) -> None:
    """And it is known after the step if a NaN in the gradient kept the gate from being asked."""
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(2, take_steps, str(tmp_path / "found.json"), *layout)
        assert ranks.exit_codes(300) == [0, 0], ranks.output(0) + ranks.output(1)
    everyone = json.loads((tmp_path / "found.json").read_text())
    assert len(everyone) == 2
    for step, parts in enumerate(zip(*everyone, strict=True)):
        total = sum(part["own"] for part in parts)
        assert all(part["applied"] == (step == 0) for part in parts)
        if step == 2:
            assert all(math.isnan(part["loss"]) and part["asked"] == [] for part in parts)
        else:
            assert all(part["loss"] == total and part["asked"] == [total] for part in parts)
