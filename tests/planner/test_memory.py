"""Bytes that a rank holds, on the device and on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swinv2_train.planner.memory import evaluation_bytes, host_copy_bytes, state_bytes
from tests.planner.configs import config


@pytest.mark.parametrize(
    ("stage", "without", "average"),
    [(0, 16, 4), (1, 2 + 2 + 12 / 8, 4 / 8), (2, 2 + 14 / 8, 4 / 8), (3, 16 / 8, 4 / 8)],
)
def test_the_average_is_sharded_from_the_first_stage_on(stage: int, without: float, average: float) -> None:
    assert state_bytes(config(stage), 1000, 8) == 1000 * without
    assert state_bytes(config(stage, ema=0.999), 1000, 8) == 1000 * (without + average)


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


@pytest.mark.parametrize(("stage", "states", "copied"), [(0, 2000, 4000), (1, 2000, 500), (3, 250, 500)])
def test_frozen_parameters_have_weights_alone(stage: int, states: float, copied: float) -> None:
    made = config(stage, ema=0.999, eval_shards="held-out")
    assert state_bytes(made, 1500, 8, frozen=1000) == states + state_bytes(made, 500, 8)
    assert evaluation_bytes(made, 1500, 8, frozen=1000) == evaluation_bytes(made, 500, 8)
    assert host_copy_bytes(made, 1500, 8, frozen=1000) == copied + host_copy_bytes(made, 500, 8)
