"""A run that hangs ends by itself, with the stacks of every rank on record, whatever it is that is stuck."""

from __future__ import annotations

import ctypes
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
import torch

from swinv2_train.config.schema import WatchdogConfig
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.launch import watchdog as module
from swinv2_train.launch.ranks import Ranks, join, leave
from swinv2_train.launch.watchdog import Watchdog
from tests.engine.apart import Apart

SHORT, LONG = 0.01, 10.0
"""Minutes: 0.6 seconds, and longer than any test."""
WORKING = 0.05
"""Minutes: what a run may take that is not stuck, on a busy machine."""


def watched(run: Path, *, start: float = LONG, step: float = LONG, save: float = LONG) -> tuple[Ranks, Watchdog]:
    """A watchdog of this process, with the waits of a test instead of those of a cluster."""
    module.GRACE_SECONDS, module.MARGIN_SECONDS, module.WRITE_SECONDS = 3.0, 1.0, 3.0
    ranks = join("cpu", LONG)
    run.mkdir(exist_ok=True)
    limits = WatchdogConfig(start_minutes=start, step_minutes=step, eval_minutes=LONG, save_minutes=save)
    watchdog = Watchdog(limits, run, ranks)
    watchdog.doing = "at the place that the test named"
    return ranks, watchdog


def a_function_that_hangs() -> None:
    threading.Event().wait()


def a_function_that_holds_the_lock() -> None:
    ctypes.PyDLL(None).sleep(300)  # PyDLL, unlike CDLL, keeps the interpreter lock


def hang_in_a_step(run: Path) -> None:
    ranks, watchdog = watched(run, step=SHORT)
    with watchdog:
        ranks.gather("something")
        watchdog.now("step", 11)
        a_function_that_hangs()


@pytest.fixture
def apart(tmp_path: Path) -> Apart:
    with Apart(tmp_path) as processes:
        yield processes


def test_a_step_that_hangs_ends_the_run_and_is_on_record(apart: Apart, tmp_path: Path) -> None:
    apart.start(hang_in_a_step, tmp_path / "run")
    assert apart.exit_codes() == [FAILED]
    stacks = (tmp_path / "run" / "stacks" / "step-00000012" / "rank-00000.txt").read_text()
    assert "step 12 is not done after 0.01 minutes (watchdog.step_minutes)" in stacks.splitlines()[0]
    assert f"pid {apart.processes[0].pid}" in stacks
    assert "where: at the place that the test named" in stacks
    assert re.search(r"last collective: gather number 2, begun \d+ s ago, finished \d+ s ago", stacks)
    assert "in a_function_that_hangs" in stacks
    recorder = hasattr(torch._C._distributed_c10d, "_dump_fr_trace_json")  # older releases do not record gloo
    assert ('"profiling_name": "gloo:' if recorder else "none on record") in stacks
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"status": "failed", "step": 11}
    (sentence,) = [line for line in apart.output(0).splitlines() if line.startswith("swinv2-train")]
    assert str(tmp_path / "run" / "stacks" / "step-00000012") in sentence
    assert "rerun the same command to resume from the newest checkpoint" in sentence


def hang_at_the_start(run: Path) -> None:
    _, watchdog = watched(run, start=SHORT)
    with watchdog:
        a_function_that_hangs()


def test_a_start_that_hangs_ends_the_run(apart: Apart, tmp_path: Path) -> None:
    apart.start(hang_at_the_start, tmp_path / "run")
    assert apart.exit_codes() == [FAILED]
    assert "the first step is not done" in apart.output(0)
    assert "watchdog.start_minutes" in apart.output(0)


def hang_in_a_background_save(run: Path) -> None:
    _, watchdog = watched(run, save=SHORT)

    def save() -> None:
        with watchdog.background("save"):
            a_function_that_hangs()

    with watchdog:
        watchdog.now("step", 12)
        threading.Thread(target=save, daemon=True).start()
        while True:
            watchdog.now("step", 13)
            time.sleep(0.05)


def test_a_save_that_hangs_in_the_background_ends_the_run(apart: Apart, tmp_path: Path) -> None:
    apart.start(hang_in_a_background_save, tmp_path / "run")
    assert apart.exit_codes() == [FAILED]
    assert "the checkpoint of step 12 is not saved after 0.01 minutes (watchdog.save_minutes)" in apart.output(0)
    (stacks,) = (tmp_path / "run" / "stacks").glob("step-*/rank-00000.txt")
    assert "in a_function_that_hangs" in stacks.read_text()


def work_on(run: Path) -> None:
    _, watchdog = watched(run, step=WORKING, save=WORKING)
    with watchdog:
        for step in range(1, 41):  # longer, all together, than one may take
            watchdog.now("step", step)
            with watchdog.background("save"):
                time.sleep(0.1)
    leave()


@pytest.mark.slow
def test_a_run_that_goes_on_is_left_alone_and_leaves_nothing(apart: Apart, tmp_path: Path) -> None:
    apart.start(work_on, tmp_path / "run")
    assert apart.exit_codes() == [FINISHED], apart.output(0)
    assert list((tmp_path / "run").iterdir()) == []


def hold_the_lock(run: Path) -> None:
    _, watchdog = watched(run, start=SHORT, step=SHORT)
    with watchdog:
        watchdog.now("step", 12)
        time.sleep(0.3)
        a_function_that_holds_the_lock()


@pytest.mark.slow
def test_a_call_that_keeps_python_from_running_ends_as_well(apart: Apart, tmp_path: Path) -> None:
    apart.start(hold_the_lock, tmp_path / "run")
    assert apart.exit_codes() == [FAILED]
    (stacks,) = (tmp_path / "run" / "stacks").glob("*/rank-00000.txt")
    assert "in a_function_that_holds_the_lock" in stacks.read_text()


def one_of_two_hangs(run: Path) -> None:
    alone = os.environ["RANK"] == "1"
    ranks, watchdog = watched(run, step=SHORT if alone else LONG)
    with watchdog:
        watchdog.now("step", 6)
        if alone:
            a_function_that_hangs()
        ranks.gather("waits for the other")


@pytest.mark.slow
def test_one_rank_that_hangs_makes_all_write_and_end(apart: Apart, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    apart.start_ranks(2, one_of_two_hangs, tmp_path / "run")
    assert apart.exit_codes() == [FAILED, FAILED]
    here, there = ((tmp_path / "run" / "stacks" / "step-00000007" / f"rank-0000{rank}.txt") for rank in (0, 1))
    assert "in a_function_that_hangs" in there.read_text()
    assert "gather number 2, begun" in here.read_text()
    assert "not finished" in here.read_text()
    assert here.read_text().splitlines()[0] == there.read_text().splitlines()[0]  # both say whose hang it is
    assert "rank 1 on " in here.read_text().splitlines()[0]
    sentences = [line for rank in (0, 1) for line in apart.output(rank).splitlines() if "is not done" in line]
    assert len(sentences) == 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


def one_of_two_holds_the_lock(run: Path) -> None:
    ranks, watchdog = watched(run, start=SHORT, step=SHORT)
    with watchdog:
        watchdog.now("step", 6)
        if os.environ["RANK"] == "1":
            time.sleep(0.3)
            a_function_that_holds_the_lock()
        ranks.gather("waits for the other")


@pytest.mark.slow
def test_the_stacks_of_a_rank_without_python_are_next_to_the_others(apart: Apart, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    apart.start_ranks(2, one_of_two_holds_the_lock, tmp_path / "run")
    assert apart.exit_codes() == [FAILED, FAILED]
    here, there = ((tmp_path / "run" / "stacks" / "step-00000007" / f"rank-0000{rank}.txt") for rank in (0, 1))
    assert "gather number 2, begun" in here.read_text()
    assert "in a_function_that_holds_the_lock" in there.read_text()


@pytest.mark.slow
def test_a_file_system_that_does_not_answer_does_not_keep_a_run_from_ending(apart: Apart, tmp_path: Path) -> None:
    stuck = tmp_path / "run" / "stacks" / "step-00000012" / "rank-00000.txt"
    stuck.parent.mkdir(parents=True)
    os.mkfifo(stuck)  # opening it waits for a reader that never comes
    apart.start(hang_in_a_step, tmp_path / "run")
    assert apart.exit_codes() == [FAILED]
    assert "in a_function_that_hangs" in apart.output(0)
    assert f"{stuck} could not be written" in apart.output(0)


def test_a_directory_that_cannot_be_written_to_does_not_keep_a_run_from_ending(apart: Apart, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stacks").touch()
    apart.start(hang_in_a_step, tmp_path / "run")
    assert apart.exit_codes() == [FAILED]
    assert "in a_function_that_hangs" in apart.output(0)


@pytest.mark.slow
def test_the_marker_of_an_earlier_start_means_nothing(apart: Apart, tmp_path: Path) -> None:
    earlier = tmp_path / "run" / "stacks" / "start-0000"
    earlier.mkdir(parents=True)
    (earlier / "incident.json").write_text('{"what": "rank 0: step 5 is not done", "folder": "step-00000005"}')
    (earlier / "rank-00000.txt").touch()
    (earlier / "rank-00001.txt").write_text("stacks that nobody has read yet")
    apart.start(work_on, tmp_path / "run")
    assert apart.exit_codes() == [FINISHED], apart.output(0)
    assert [path.name for path in earlier.iterdir()] == ["rank-00001.txt"]
