"""One rank of a 64-rank job of the model that fits on no machine here."""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.forkserver
import sys
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.planner.memory import moments, peak
from tests.engine.apart import Apart

pytestmark = pytest.mark.distributed
BENCH = Path(__file__).parents[2] / "scripts" / "bench"
Found = dict[tuple[str, ...], dict[str, Any]]
ENGINES = [("zero1_bf16_fp32_accumulation", 0), ("zero1_fp32", 1)]


def keys_of(engine: str, period: int) -> tuple[str, ...]:
    return (f"model.checkpointing={period}", f"engine={engine}")


def measure(out: str, experiment: str, ranks: int, images: int, overrides: list[str]) -> None:
    gc.freeze()  # DeepSpeed collects garbage again and again
    sys.path.insert(0, str(BENCH))
    import step_memory

    Path(out).write_text(json.dumps(step_memory.measure(experiment, ranks, images, overrides)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """By overrides, what the meter finds: of the giant without any, else of a small model with activations.

    Each in a process of its own, forked from one that has imported DeepSpeed.
    """
    folder = tmp_path_factory.mktemp("meter")
    cases = {(): ("simmim_giant", 64, 0), **{keys_of(*engine): ("simmim_tiny", 8, 16) for engine in ENGINES}}
    multiprocessing.forkserver._forkserver._stop()  # it may have been started with less
    with Apart(folder) as apart:
        modules = ["deepspeed", "torch._dynamo", "swinv2_train.engine.deepspeed", __name__]
        multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
        for index, (keys, case) in enumerate(cases.items()):
            apart.start(measure, str(folder / f"{index}.json"), *case, list(keys))
        assert apart.exit_codes(300) == [0] * len(cases), [apart.output(index) for index in range(len(cases))]
    return {keys: json.loads((folder / f"{index}.json").read_text()) for index, keys in enumerate(cases)}


def test_one_rank_of_64_fits_at_every_moment_of_a_step(measured: Found) -> None:
    """Weights, sums in fp32, its part of the optimizer, and the largest gradient: no copies, and nothing twice."""
    found = measured[()]
    config = compose(["+experiment=simmim_giant"])
    parameters = config.task.describe(config).parameters
    assert found["parameters"] == parameters
    assert found["owned"] == pytest.approx(parameters / 64, rel=1e-5)
    states = parameters * (2 + 4 + 12 / 64)
    assert found["held"] == pytest.approx(states, rel=1e-3)
    assert max(found["backward"], found["update"]) < states + parameters * 0.1
    planned = moments(config, make_plan(config, 64, config.data.expected_samples))
    counted = max(found["backward"], found["update"])
    assert max(memory.states for memory in planned) == pytest.approx(counted, rel=0.03)
    assert found["resident"] < 2**30, "the layout was allocated"


@pytest.mark.parametrize(("engine", "period"), ENGINES)
def test_the_planner_knows_the_peak_of_a_step_with_activations(measured: Found, engine: str, period: int) -> None:
    """A small model with sharded states: DeepSpeed, forward, loss, and backward, all counted by the meter."""
    keys = keys_of(engine, period)
    found = measured[keys]
    config = compose(["+experiment=simmim_tiny", *keys, "optim.global_batch=256", "engine.micro_batch=16"])
    planned = peak(config, make_plan(config, 8, config.data.expected_samples), gpu=False)
    counted = max(found["backward"], found["update"])
    assert planned.states < 0.8 * counted
    assert planned.total == pytest.approx(counted, rel=0.03)


def test_the_batch_of_the_giant_divides_among_64_ranks() -> None:
    config = compose(["+experiment=simmim_giant"])
    plan = make_plan(config, 64, config.data.expected_samples)
    assert plan.micro_batch * plan.accumulation * 64 == config.optim.global_batch
