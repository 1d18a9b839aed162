"""The guard's verdicts, and the state it keeps."""

from __future__ import annotations

import json
import math

import pytest

from swinv2_train.config.schema import GuardConfig
from swinv2_train.engine.guard import Guard, spike_limit
from swinv2_train.engine.state import TrainState


def filled(config: GuardConfig, steps: int) -> tuple[Guard, TrainState]:
    guard, state = Guard(config), TrainState()
    for step in range(steps):
        wave = math.sin(step)
        guard.accept(1.0 + 0.02 * wave, 3.0 + 0.5 * wave, state)
    return guard, state


@pytest.mark.parametrize("policy", ["skip", "rollback", "stop", "off"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_always_refused(policy: str, value: float) -> None:
    guard = Guard(GuardConfig(policy=policy))
    for loss, norm, name in ((value, 1.0, "loss"), (1.0, value, "gradient norm")):
        refusal = guard.judge(loss, norm, TrainState())
        assert refusal is not None
        assert (refusal.spike, refusal.reason) == (False, f"the {name} is {value}")


def test_a_spike_is_refused_and_named() -> None:
    guard, state = filled(GuardConfig(window=64, min_steps=32), 40)
    assert guard.judge(1.02, 3.4, state) is None
    assert guard.judge(1.25, 12.0, state) is None, "a ratio below the limits is not a spike, however steady the rest is"
    loss, norm = guard.judge(1.6, 3.0, state), guard.judge(1.0, 40.0, state)
    assert loss is not None
    assert loss.spike
    assert loss.reason.startswith("the loss 1.6 is a spike above 1.3")
    assert norm is not None
    assert norm.reason.startswith("the gradient norm 40 is a spike above 1")
    assert guard.judge(0.01, 0.01, state) is None, "falling numbers are not spikes"


def test_a_gradient_norm_that_stays_high_is_let_through_but_a_loss_is_not() -> None:
    guard, state = filled(GuardConfig(), 128)
    passed = []
    for _ in range(200):
        refusal = guard.judge(1.0, 60.0, state)
        passed.append(refusal is None)
        if refusal is None:
            guard.accept(1.0, 60.0, state)
        else:
            guard.refuse(refusal, state)
    assert passed == [False] * 3 + [True] * 197
    assert guard.judge(1.0, 600.0, state) is not None, "the test has restarted"
    guard, state = filled(GuardConfig(), 128)
    for loss in (9.0, math.nan) * 10:
        refusal = guard.judge(loss, 60.0, state)
        assert refusal is not None
        guard.refuse(refusal, state)
    assert guard.judge(1.0, 60.0, state) is not None, "refused losses do not open the way for a spike of the norm"


def test_no_spikes_before_there_is_something_to_compare_with_or_when_off() -> None:
    guard, state = filled(GuardConfig(window=64, min_steps=32), 31)
    assert guard.judge(100.0, 1000.0, state) is None
    guard, state = filled(GuardConfig(window=64, min_steps=32, policy="off"), 64)
    assert guard.judge(100.0, 1000.0, state) is None


def test_the_window_forgets_and_earlier_outliers_do_not_widen_it() -> None:
    _, state = filled(GuardConfig(window=16, min_steps=8), 40)
    assert len(state.losses) == len(state.grad_norms) == 16
    steady = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99]
    assert spike_limit([*steady, 50.0], 10.0, 1.0) < 1.3
    assert spike_limit([1.0] * 10, 10.0, 1.3) == 1.3


def test_the_state_survives_json_to_the_bit() -> None:
    _, state = filled(GuardConfig(), 30)
    state.step, state.avoided_batches = 30, [3, 7]
    assert TrainState(**json.loads(json.dumps(state.to_dict()))) == state


def test_what_lies_behind_is_never_avoided() -> None:
    state = TrainState(step=9)
    state.avoid(range(6, 12))
    assert state.avoided_batches == [9, 10, 11]
    assert state.batch == 12


def test_which_states_lie_on_the_way_to_another() -> None:
    before = TrainState(step=11, avoided_batches=[4])
    assert TrainState(step=9, avoided_batches=[4, 10]).comes_to(before), "what it leaves out later does not matter"
    assert TrainState(step=4).comes_to(before)
    assert not TrainState(step=5).comes_to(before), "it has consumed batch 4"
    assert not TrainState(step=9, avoided_batches=[3]).comes_to(before)
    assert not TrainState(step=12, avoided_batches=[4]).comes_to(before)
    assert TrainState().comes_to(before)


def test_batches_skip_the_avoided_ones() -> None:
    state = TrainState()
    state.avoid([4, 2])
    state.avoid([5, 2])
    order = []
    for state.step in range(6):
        order.append(state.batch)
    assert state.avoided_batches == [2, 4, 5]
    assert order == [0, 1, 3, 6, 7, 8]
