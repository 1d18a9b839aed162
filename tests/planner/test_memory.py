"""Bytes that a rank needs, on the device and on the host."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config
from swinv2_train.planner.memory import (
    checkpoint_bytes,
    evaluation_bytes,
    held,
    host_copy_bytes,
    moments,
    peak,
)
from tests.planner.configs import config

RESULTS = Path(__file__).parents[2] / "scripts" / "bench" / "results"
METERED = [
    (report["overrides"], row)
    for path in sorted(RESULTS.glob("step-memory*.json"))
    for report in [json.loads(path.read_text())]
    for row in report["results"]
]
"""Overrides and rows of the reports about what DeepSpeed itself holds in a step without activations."""


def planned(made: Config, ranks: int, batch: int = 64) -> tuple[Config, Plan]:
    made.optim.steps, made.optim.warmup_steps, made.optim.global_batch = 10, 1, batch
    return made, make_plan(made, ranks, 6400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "row"), METERED, ids=[f"{row['experiment']}-{row['ranks']}-{''.join(o)}" for o, row in METERED]
)
def test_states_are_those_that_the_meter_counts(overrides: list[str], row: dict) -> None:
    """Within 3%, at the peak and between two steps."""
    ranks = row["ranks"]
    keys = [f"optim.global_batch={2 * ranks}", "engine.micro_batch=1", *overrides]
    made = compose([f"+experiment={row['experiment']}", *keys])
    plan = make_plan(made, ranks, made.data.expected_samples)
    counted = max(row[name] for name in ("backward", "held", "update"))
    assert max(memory.states for memory in moments(made, plan)) == pytest.approx(counted, rel=0.03)
    assert held(made, row["parameters"], ranks).states == pytest.approx(row["between_steps"], rel=0.03)


@pytest.mark.parametrize(("stage", "without", "average"), [(0, 14, 4), (1, 2 + 12 / 8, 4 / 8), (3, 14 / 8, 4 / 8)])
def test_the_average_is_sharded_from_the_first_stage_on(stage: int, without: float, average: float) -> None:
    assert held(config(stage), 1000, 8).states == 1000 * without
    assert held(config(stage, ema=0.999), 1000, 8).states == 1000 * (without + average)
    assert held(config(stage, ema=0.999), 1000, 8).average == 1000 * average


def test_sums_in_fp32_exist_between_two_steps() -> None:
    made = config()
    made.engine = replace(made.engine, grad_accum_dtype="fp32")
    assert held(made, 1000, 8).sums == 4000
    assert held(config(), 1000, 8).sums == 0


def test_frozen_parameters_have_only_weights() -> None:
    one, other = (held(config(ema=0.999), count, 8, frozen) for count, frozen in ((1500, 1000), (500, 0)))
    assert one.states == other.states + 2000


def test_gradients_accumulate_from_the_second_micro_batch_on() -> None:
    made = config()
    made.engine = replace(made.engine, micro_batch=4)
    parameters = made.task.describe(made).parameters
    head = [next(each for each in moments(*planned(made, 8, batch)) if "head" in each.moment) for batch in (32, 64)]
    assert head[0].gradients < head[1].gradients == 2 * parameters
    made.engine = replace(made.engine, grad_accum_dtype="fp32")
    assert all(each.gradients < 0.2 * parameters for each in moments(*planned(made, 8, 64)))


def test_a_smaller_bucket_needs_less() -> None:
    made = config()
    whole = peak(*planned(made, 8)).buckets
    made.engine = replace(made.engine, deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}})
    assert (whole, peak(*planned(made, 8)).buckets) == (2 * 50_000_000, 2000)


def test_checkpointing_moves_activations_into_one_recomputed_block() -> None:
    made = config()
    without = peak(*planned(made, 1))
    made.model = replace(made.model, checkpointing=1)
    recomputed = peak(*planned(made, 1))
    assert (without.recomputed, recomputed.recomputed > recomputed.activations) == (0, True)
    assert recomputed.total < without.total / 2


def test_the_peak_can_be_the_evaluation_of_the_average() -> None:
    made = config(0, ema=0.999, eval_shards="held-out")
    made.model = replace(made.model, checkpointing=1)
    _, plan = planned(made, 8, 8)
    parameters = made.task.describe(made).parameters
    evaluated = next(each for each in moments(made, plan) if "average" in each.moment)
    assert evaluated.average == 8 * parameters
    assert not any("average" in each.moment for each in moments(config(0, ema=0.999), plan))


@pytest.mark.parametrize(("stage", "expected"), [(0, 4000), (1, 500), (2, 500), (3, 500)])
def test_an_evaluation_of_the_average_sets_the_weights_aside(stage: int, expected: float) -> None:
    made = config(stage, ema=0.999, eval_shards="held-out")
    assert evaluation_bytes(made, 1000, 8) == expected
    made.eval = replace(made.eval, every_steps=0)
    assert evaluation_bytes(made, 1000, 8) == expected  # for the figures
    made.eval = replace(made.eval, figure_every_steps=0)
    assert evaluation_bytes(made, 1000, 8) == 0
    made.eval = replace(made.eval, every_steps=10, ema=False)
    assert evaluation_bytes(made, 1000, 8) == 0
    assert evaluation_bytes(config(stage, ema=0.999), 1000, 8) == 0
    assert evaluation_bytes(config(stage, eval_shards="held-out"), 1000, 8) == 0


@pytest.mark.parametrize(("stage", "without", "with_average"), [(0, 12000, 16000), (1, 1500, 2000), (3, 1500, 2000)])
def test_a_save_in_the_background_takes_host_memory(stage: int, without: float, with_average: float) -> None:
    assert host_copy_bytes(config(stage), 1000, 8) == without
    assert host_copy_bytes(config(stage, ema=0.999), 1000, 8) == with_average
    assert host_copy_bytes(config(stage, ema=0.999, background=False), 1000, 8) == 0


def test_frozen_parameters_are_saved_as_weights() -> None:
    made = config(ema=0.999, eval_shards="held-out")
    assert evaluation_bytes(made, 1500, 8, frozen=1000) == evaluation_bytes(made, 500, 8)
    assert checkpoint_bytes(made, 1500, frozen=1000) == 4000 + checkpoint_bytes(made, 500)
    assert host_copy_bytes(made, 1500, 8, frozen=1000) == 500 + host_copy_bytes(made, 500, 8)
