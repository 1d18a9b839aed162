"""One rank of a 64-rank job of the model that fits on no machine here."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.planner.memory import moments, peak
from tests.faults.nursery import Nursery

pytestmark = pytest.mark.distributed
METER = Path(__file__).parents[2] / "scripts" / "bench" / "step_memory.py"


def counted(nursery: Nursery, folder: Path, *arguments: str) -> dict[str, Any]:
    """Return what the meter prints, in a process of its own."""
    code, output = nursery.run("tests.distributed.test_giant", ["--one", *arguments], folder)
    assert code == 0, output
    return json.loads(output.splitlines()[-1])


def test_one_rank_of_64_fits_at_every_moment_of_a_step(nursery: Nursery, tmp_path: Path) -> None:
    """Weights, sums in fp32, its part of the optimizer, and the largest gradient: no copies, and nothing twice."""
    found = counted(nursery, tmp_path, "--experiments", "simmim_giant", "--ranks", "64")
    config = compose(["+experiment=simmim_giant"])
    parameters = config.task.describe(config).parameters
    assert found["parameters"] == parameters
    assert found["owned"] == pytest.approx(parameters / 64, rel=1e-5)
    states = parameters * (2 + 4 + 12 / 64)
    assert found["held"] == pytest.approx(states, rel=1e-3)
    assert max(found["backward"], found["update"]) < states + parameters * 0.1
    planned = moments(config, make_plan(config, 64, config.data.expected_samples))
    reached = max(found["backward"], found["update"])
    assert max(memory.states for memory in planned) == pytest.approx(reached, rel=0.03)
    assert found["resident"] < 2**30, "the layout was allocated"


@pytest.mark.parametrize(
    ("engine", "period", "depths"),
    [("zero1_bf16_fp32_accumulation", 0, "[2,2,6,2]"), ("zero1_fp32", 1, "[1,1,2,1]")],
)
def test_the_planner_knows_the_peak_of_a_step_with_activations(
    engine: str, period: int, depths: str, nursery: Nursery, tmp_path: Path
) -> None:
    """A small model with sharded states: DeepSpeed, forward, loss, and backward, all counted by the meter."""
    keys = [f"model.checkpointing={period}", f"engine={engine}", f"model.depths={depths}"]
    batch = ["--images", "16", "--ranks", "8"]
    found = counted(nursery, tmp_path, "--experiments", "simmim_tiny", *batch, "--overrides", *keys)
    config = compose(["+experiment=simmim_tiny", *keys, "optim.global_batch=256", "engine.micro_batch=16"])
    planned = peak(config, make_plan(config, 8, config.data.expected_samples), gpu=False)
    reached = max(found["backward"], found["update"])
    assert planned.states < 0.8 * reached
    assert planned.total == pytest.approx(reached, rel=0.03)


def test_the_batch_of_the_giant_divides_among_64_ranks() -> None:
    config = compose(["+experiment=simmim_giant"])
    plan = make_plan(config, 64, config.data.expected_samples)
    assert plan.micro_batch * plan.accumulation * 64 == config.optim.global_batch


if __name__ == "__main__":
    sys.path.insert(0, str(METER.parent))
    runpy.run_path(str(METER), run_name="__main__")
