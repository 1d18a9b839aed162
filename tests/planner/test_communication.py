"""The model of the time of a step."""

from __future__ import annotations

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config
from swinv2_train.planner.communication import (
    MFU,
    USABLE,
    Network,
    communication_lines,
    step_time,
    with_late_gather,
    without_overlap,
)
from swinv2_train.planner.flops import training_flops

EFA = Network(42.5e9)


def giant(ranks: int, *overrides: str) -> tuple[Config, Plan]:
    made = compose(["+experiment=simmim_giant", *overrides])
    return made, make_plan(made, ranks, made.data.expected_samples)


def test_compute_is_the_model_flops_of_a_rank() -> None:
    config, plan = giant(64)
    time = step_time(config, plan, EFA)
    assert time.compute == pytest.approx(training_flops(config) * 9216 / 64 / (312e12 * MFU))
    assert step_time(config, plan, EFA, peak_flops=624e12).compute == pytest.approx(time.compute / 2)


@pytest.mark.parametrize(("ranks", "expected"), [(64, 0.13), (256, 0.39), (512, 0.58)])
def test_without_overlap_three_times_the_weights_are_exposed(ranks: int, expected: float) -> None:
    config, plan = giant(ranks)
    time = without_overlap(config, plan, EFA)
    parameters = config.task.describe(config).parameters
    assert time.exposed == pytest.approx(3 * 2 * parameters * (ranks - 1) / ranks / 42.5e9)
    assert time.lost == pytest.approx(expected, abs=0.01)


def test_sums_in_fp32_hide_behind_the_last_backward_alone() -> None:
    """Of two micro-batches, only the second reduces; the weights are gathered after the update."""
    config, plan = giant(64)
    weights = 2 * config.task.describe(config).parameters * 63 / 64
    backward = USABLE * 3 / 4 * step_time(config, plan, EFA).compute / plan.accumulation  # with recomputation
    assert step_time(config, plan, EFA).exposed == pytest.approx(weights / 42.5e9)
    slow = step_time(config, plan, Network(2.8e9)).exposed
    assert slow == pytest.approx(3 * weights / 2.8e9 - backward)
    config, plan = giant(64, "engine.micro_batch=36")
    assert step_time(config, plan, Network(2.8e9)).exposed == pytest.approx(slow + backward / 2)


def test_each_engine_reduces_as_often_as_it_does() -> None:
    exposed = {}
    for engine in ("zero1_bf16", "zero2_bf16", "zero1_bf16_fp32_accumulation"):
        exposed[engine] = step_time(*giant(64, f"engine={engine}"), EFA).exposed
    one = exposed["zero1_bf16_fp32_accumulation"]
    assert exposed["zero1_bf16"] == pytest.approx(3 * one)
    assert exposed["zero2_bf16"] == pytest.approx(5 * one)  # two micro-batches
    assert step_time(*giant(64, "engine.zero_stage=3", "engine.grad_accum_dtype=null"), EFA) is None


def test_a_later_gather_would_hide_as_well() -> None:
    config, plan = giant(256)
    late, now = with_late_gather(config, plan, EFA), step_time(config, plan, EFA)
    assert late.exposed < now.exposed
    assert late.compute == now.compute
    assert late.lost < now.lost < without_overlap(config, plan, EFA).lost


@pytest.mark.parametrize(("ranks", "messages"), [(64, 6), (128, 7), (192, 9), (512, 9)])
def test_one_control_sum_of_few_messages_hides_behind_the_last_backward(ranks: int, messages: int) -> None:
    config, plan = giant(ranks, "engine.micro_batch=6")
    assert step_time(config, plan, EFA).control == 0
    hidden = USABLE * 3 / 4 * step_time(config, plan, EFA).compute / plan.accumulation  # with recomputation
    slow = Network(42.5e9, hop=1.0)
    assert step_time(config, plan, slow).control == pytest.approx(messages - hidden)
    assert with_late_gather(config, plan, slow).control == step_time(config, plan, slow).control


def test_two_sums_over_a_ring_grow_with_the_ranks() -> None:
    assert without_overlap(*giant(512), EFA).control == pytest.approx(2 * 2 * 511 * 40e-6)


def test_the_line_of_a_dry_run_needs_a_bandwidth_and_ranks() -> None:
    assert communication_lines(*giant(64)) == []
    assert communication_lines(*giant(1, "launch.bus_gb_s=42.5")) == ["communication  none: there is one rank"]
    (line,) = communication_lines(*giant(64, "launch.bus_gb_s=42.5"))
    assert line.startswith(
        "communication  5% of a step of 3.08 s is lost to it, modeled for launch.bus_gb_s=42.5 and 35%"
    )
    (line,) = communication_lines(*giant(64, "launch.bus_gb_s=42.5", "tracking.peak_tflops=624"))
    assert "of tracking.peak_tflops" in line


def test_frozen_parameters_are_not_exchanged() -> None:
    config, plan = giant(64)
    parameters = config.task.describe(config).parameters
    everything = step_time(config, plan, EFA).exposed
    assert step_time(config, plan, EFA, frozen=parameters // 4).exposed == pytest.approx(0.75 * everything)
