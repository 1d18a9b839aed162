"""Two ranks, started in every way: the same run as one process, and as each other; interrupted, it goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED, WRONG_USE
from swinv2_train.launch.environment import free_port
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import comparable, losses, make_shard, run_command, run_here, start, tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("default_signals")]
LENGTH = ("optim.steps=24", "tracking.log_every_steps=1", "checkpoint.every_steps=8", "eval.every_steps=12")


def ways(overrides: list[str]) -> dict[str, list[str]]:
    port, module = str(free_port()), "swinv2_train.cli.train"
    return {
        "own": ["swinv2-train", *overrides, "launch.nproc_per_node=2"],
        "deepspeed": ["deepspeed", "--num_accelerators", "2", "--master_port", port, "--module", module, *overrides],
        "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", port, "-m", module, *overrides],
    }


@pytest.fixture(scope="module")
def one_process(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("one") / "run"
    assert run_here(tiny_run(shards, run_dir, *LENGTH)) == FINISHED
    return run_dir


@pytest.fixture(scope="module")
def two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two ranks, from the start to the end of the deepspeed command."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    code, output = run_command(ways(tiny_run(shards, run_dir, *LENGTH))["deepspeed"])
    assert code == FINISHED, output
    return run_dir


def test_two_ranks_follow_one_process(one_process: Path, two_ranks: Path) -> None:
    """fp32, the same global batch: within 1e-5 relative per step for 20 steps. Stochastic depth is on."""
    assert losses(two_ranks)[:20] == pytest.approx(losses(one_process)[:20], rel=1e-5)
    held_out = [[row["eval/loss"] for row in comparable(run) if "eval/loss" in row] for run in (one_process, two_ranks)]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-4)
    assert json.loads((two_ranks / "status.json").read_text()) == {"status": "finished", "step": 24}


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the ranks below a command or launcher, in rank order."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        command = child.cmdline()
        if "swinv2_train.cli.train" in command and not any("launcher" in part for part in command):
            found[int(child.environ()["RANK"])] = child
    return [found[rank] for rank in sorted(found)]


def start_and_wait(command: list[str], run_dir: Path, step: int = 3, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a run and let it get through a step."""
    process, record = start(command, cwd), run_dir / "metrics.jsonl"
    while process.poll() is None and not (record.exists() and f'"step": {step},' in record.read_text()):
        time.sleep(0.05)
    return process


def saved_and_ended(process: subprocess.Popen[str], run_dir: Path, code: int) -> int:
    """Wait for the end of ranks that were interrupted; returns the step that they saved."""
    # The ranks hold the other end of the pipe: it closes with the last of them.
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output
    status = json.loads((run_dir / "status.json").read_text())
    assert status["status"] == "stopped"
    assert 3 <= status["step"] < 24
    assert (run_dir / "checkpoints" / f"step-{status['step']:08d}").is_dir()
    return status["step"]


def test_a_signal_to_a_rank_stops_them_all(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start_and_wait(ways(tiny_run(shards, run_dir, *LENGTH))["own"], run_dir)
    ranks_of(process)[1].send_signal(signal.SIGUSR1)
    saved_and_ended(process, run_dir, STOPPED)


def test_ranks_that_are_left_alone_save_and_end_and_the_same_command_goes_on(
    shards: Path, two_ranks: Path, hostile: Path, tmp_path: Path
) -> None:
    """In a directory whose files no process may import: command, launcher, ranks, and workers."""
    run_dir = tmp_path / "run"
    command = ways(tiny_run(shards, run_dir, *LENGTH, "data.num_workers=1"))["own"]
    process = start_and_wait(command, run_dir, cwd=hostile)
    process.kill()
    stopped = saved_and_ended(process, run_dir, -signal.SIGKILL)
    code, output = run_command(command, cwd=hostile)
    assert code == FINISHED, output
    assert f"resuming from {run_dir / 'checkpoints'}/step-{stopped:08d}" in output
    assert comparable(run_dir) == comparable(two_ranks)


def test_torchrun_goes_on_after_the_deepspeed_command_and_after_a_killed_rank(
    shards: Path, two_ranks: Path, tmp_path: Path
) -> None:
    """A SIGTERM to the deepspeed command kills it, and leaves the ranks alone. torchrun starts killed ranks again."""
    run_dir = tmp_path / "run"
    commands = ways(tiny_run(shards, run_dir, *LENGTH, "checkpoint.every_steps=2"))
    process = start_and_wait(commands["deepspeed"], run_dir)
    process.terminate()
    stopped = saved_and_ended(process, run_dir, -signal.SIGTERM)
    command = commands["torchrun"]
    process = start_and_wait([command[0], "--max-restarts", "1", *command[1:]], run_dir, stopped + 3)
    ranks_of(process)[1].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == FINISHED, output
    assert output.count("resuming from") == 2
    assert comparable(run_dir) == comparable(two_ranks)


def test_a_signal_during_the_start_is_not_lost(shards: Path, tmp_path: Path) -> None:
    process = start(ways(tiny_run(shards, tmp_path / "run", "optim.steps=2000"))["own"])
    while process.poll() is None and not (tmp_path / "run" / "status.json").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == STOPPED, output
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] in ("starting", "stopped")


def test_a_rank_that_stands_still_ends_the_command_with_the_others_stacks(shards: Path, tmp_path: Path) -> None:
    """The main rank, at that. It takes half a minute, which the command waits before it kills the suspended one."""
    overrides = tiny_run(shards, tmp_path / "run", "optim.steps=2000", "tracking.log_every_steps=1")
    process = start_and_wait(ways([*overrides, "watchdog.step_minutes=0.1"])["own"], tmp_path / "run")
    main = ranks_of(process)[0]
    main.suspend()
    output, _ = process.communicate(timeout=280)
    assert process.returncode == FAILED, output
    assert not main.is_running() or main.status() == psutil.STATUS_ZOMBIE  # or not reaped yet
    assert "rank 1 on" in output
    assert "is not done after 0.1 minutes (watchdog.step_minutes)" in output
    (stacks,) = (tmp_path / "run" / "stacks").glob("step-*/rank-00001.txt")
    assert "in train_step" in stacks.read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


def test_a_checkpoint_of_two_ranks_continues_on_one(
    shards: Path, one_process: Path, two_ranks: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(two_ranks, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000024")
    assert run_here(tiny_run(shards, run_dir, *LENGTH)) == FINISHED
    assert "saved by 2 ranks" in (run_dir / "log.txt").read_text()
    assert (run_dir / "checkpoints" / "step-00000024").is_dir()
    assert losses(run_dir)[:16] == losses(two_ranks)[:16]
    assert losses(run_dir)[16:] != losses(two_ranks)[16:], "one rank adds up in another order"
    assert losses(run_dir) == pytest.approx(losses(one_process), rel=1e-4)


def test_a_wrong_batch_for_the_ranks_is_one_sentence(shards: Path, tmp_path: Path) -> None:
    code, output = run_command(["swinv2-train", *tiny_run(shards, tmp_path / "run", "launch.nproc_per_node=5")])
    assert code == WRONG_USE
    assert output == (
        "swinv2-train: optim.global_batch=12: does not divide among 5 ranks; use 10 or 15, or another number of ranks\n"
    )


def test_an_error_in_the_ranks_is_a_failure(nursery: Nursery, tmp_path: Path) -> None:
    """tests/launch/test_launcher.py holds what the command does when ranks have failed."""
    make_shard(tmp_path / "train-0.tar", 24, 0, broken=tuple(range(14)))
    make_shard(tmp_path / "eval-0.tar", 4, 2)
    overrides = tiny_run(tmp_path, tmp_path / "run", "data.max_broken_share=0.005")
    run = FaultyRun(tmp_path / "run", overrides, nursery)
    assert run.go(2) == FAILED, run.jobs[0].output
    assert run.jobs[0].stuck == []
    assert "data.max_broken_share=0.005" in run.jobs[0].output
