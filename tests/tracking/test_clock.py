"""The step clock, with a clock of its own that only moves when told."""

from __future__ import annotations

import math

import pytest

from swinv2_train.tracking.clock import StepClock


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


def run_steps(clock: StepClock, time: Time, steps: int, wait: float, work: float) -> None:
    for _ in range(steps):
        with clock.waiting():
            time.seconds += wait
        time.seconds += work
        clock.step()


def test_rate_and_waiting_share_of_an_interval(time: Time) -> None:
    clock = StepClock(64, now=time)
    run_steps(clock, time, steps=4, wait=0.5, work=1.5)
    first = clock.read(steps_left=10)
    assert (first.steps, first.seconds_per_step, first.images_per_second) == (4, 2.0, 32.0)
    assert first.data_wait_share == 0.25
    assert first.seconds_left == 20.0


def test_each_read_covers_only_its_own_interval(time: Time) -> None:
    clock = StepClock(64, now=time)
    run_steps(clock, time, steps=3, wait=4.0, work=0.0)
    clock.read(steps_left=0)
    run_steps(clock, time, steps=2, wait=0.0, work=1.0)
    second = clock.read(steps_left=0)
    assert (second.steps, second.images_per_second, second.data_wait_share) == (2, 64.0, 0.0)


def test_evaluation_and_saving_do_not_slow_the_rate(time: Time) -> None:
    clock = StepClock(10, now=time)
    run_steps(clock, time, steps=2, wait=0.0, work=1.0)
    with clock.paused():
        time.seconds += 500.0
        with clock.paused():
            time.seconds += 500.0
        with clock.waiting():
            time.seconds += 20.0
    run_steps(clock, time, steps=2, wait=0.0, work=1.0)
    read = clock.read(steps_left=4)
    assert read.images_per_second == 10.0
    assert read.data_wait_share == 0.0
    assert read.seconds_left == pytest.approx(4 * (1.0 + 1020.0 / 4))


def test_a_pause_ends_when_its_block_raises(time: Time) -> None:
    clock = StepClock(10, now=time)

    def evaluation_that_fails() -> None:
        with clock.paused():
            time.seconds += 7.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        evaluation_that_fails()
    run_steps(clock, time, steps=1, wait=0.0, work=2.0)
    assert clock.read(steps_left=0).images_per_second == 5.0


def test_the_slow_start_fades_from_the_time_left(time: Time) -> None:
    clock = StepClock(10, now=time)
    run_steps(clock, time, steps=2, wait=0.0, work=1000.0)
    assert clock.read(steps_left=10).seconds_left == 10_000.0
    for _ in range(40):
        run_steps(clock, time, steps=10, wait=0.0, work=1.0)
        read = clock.read(steps_left=10)
    assert read.seconds_left == pytest.approx(10.0, rel=0.01)


def test_a_first_step_that_is_read_alone_is_forgotten_at_the_next_read(time: Time) -> None:
    clock = StepClock(10, now=time)
    run_steps(clock, time, steps=1, wait=0.0, work=1000.0)
    assert clock.read(steps_left=10).seconds_left == 10_000.0
    run_steps(clock, time, steps=10, wait=0.0, work=1.0)
    assert clock.read(steps_left=10).seconds_left == pytest.approx(10.0)


def test_nothing_is_known_before_the_first_step(time: Time) -> None:
    read = StepClock(10, now=time).read(steps_left=3)
    assert math.isnan(read.images_per_second)
    assert math.isnan(read.seconds_left)
    assert read.data_wait_share == 0.0
