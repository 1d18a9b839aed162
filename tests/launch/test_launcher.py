"""The command's response to the end of its ranks, with small processes instead of ranks."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED, WRONG_USE
from swinv2_train.launch import launcher, local_ranks
from swinv2_train.launch.status import read_status, write_status

pytestmark = pytest.mark.usefixtures("default_signals")

RANK = """
import json, os, signal, sys, time
from pathlib import Path
run, rank = Path(sys.argv[1]), os.environ["RANK"]
def status(text, step):
    (run / "status.json").write_text(json.dumps({"status": text, "step": step}))
(run / f"pid-{rank}").write_text(str(os.getpid()))
def ready():
    (run / f"ready-{rank}").touch()
"""


@pytest.fixture
def run(tmp_path: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(hostile)  # what runs below the command imports nothing from there
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    options = ["+experiment=simmim_demo", f"run.dir={tmp_path / 'run'}"]
    return compose([*options, "watchdog.step_minutes=0.01", "watchdog.save_minutes=0.02"], None)


def start(monkeypatch: pytest.MonkeyPatch, config: Config, rank: str, *to_command: int) -> int:
    """Launch two ranks that do `RANK` and then `rank`; send the command signals when both are ready."""
    directory = Path(config.run.dir)
    code = RANK + textwrap.dedent(rank)
    monkeypatch.setattr(launcher, "rank_command", lambda _: [sys.executable, "-c", code, config.run.dir])
    waited = local_ranks.time.sleep

    def sleep(seconds: float) -> None:
        if pending and all((directory / f"ready-{rank}").exists() for rank in (0, 1)):
            os.kill(os.getpid(), pending.pop(0))
        waited(seconds)

    pending = list(to_command)
    monkeypatch.setattr(local_ranks.time, "sleep", sleep)
    try:
        return launcher.launch(config, 2, "cpu", 0)
    finally:
        for rank in (0, 1):
            assert not psutil.pid_exists(int((directory / f"pid-{rank}").read_text()))


@pytest.mark.slow
def test_a_run_that_finished(run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(monkeypatch, run, "status('finished', 30)\nready()") == FINISHED
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGSEGV)])
def test_a_rank_that_dies_of_a_signal_is_named(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], victim: int, number: int
) -> None:
    rank = f"""
        status("running", 20)
        ready()
        time.sleep(0.5)
        if rank == "{victim}":
            os.kill(os.getpid(), {int(number)})
        time.sleep(0.6)
        sys.exit(1)
        """
    assert start(monkeypatch, run, rank) == FAILED
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"swinv2-train: rank {victim} died of {signal.Signals(number).name}")
    assert line.endswith("rerun the same command to resume from the newest checkpoint")
    assert read_status(Path(run.run.dir)) == {"status": "failed", "step": 20}


@pytest.mark.slow
def test_a_rank_that_has_said_why_is_not_commented_on(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, run, f"ready()\ntime.sleep(0.5)\nsys.exit({WRONG_USE})") == WRONG_USE
    assert capfd.readouterr().err == ""
    assert read_status(Path(run.run.dir))["status"] == "failed"


def test_ranks_that_end_well_prove_nothing(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, run, "status('running', 20)\nready()\ntime.sleep(0.5)") == FAILED
    assert "the ranks ended with code 0, but the run is not finished (status: running)" in capfd.readouterr().err
    assert read_status(Path(run.run.dir)) == {"status": "failed", "step": 20}


SAVE_AND_END = """
    def end(number, frame):
        status("stopped", 21)
        (run / f"got-{rank}").write_text(signal.Signals(number).name)
        sys.exit(75)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, end)
    status("running", 20)
    ready()
    time.sleep(60)
    """


@pytest.mark.slow
def test_the_others_are_asked_to_save_after_one_has_failed(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_ranks, "_REPORT_SECONDS", 0.3)
    rank = SAVE_AND_END.replace("ready()", "ready()\n    if rank == '1': os.kill(os.getpid(), 9)")
    assert start(monkeypatch, run, rank) == FAILED
    assert (Path(run.run.dir) / "got-0").read_text() == "SIGTERM"
    assert "rank 1 died of SIGKILL" in capfd.readouterr().err


@pytest.mark.slow
def test_deaf_and_suspended_ranks_are_killed(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_ranks, "_REPORT_SECONDS", 0.1)
    monkeypatch.setattr(launcher, "_SAVE_SECONDS", 0.5)
    deaf = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        status("running", 20)
        ready()
        if rank == "1":
            sys.exit(1)
        os.kill(os.getpid(), signal.SIGSTOP)
        """
    assert start(monkeypatch, run, deaf) == FAILED
    assert read_status(Path(run.run.dir)) == {"status": "failed", "step": 20}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_goes_on_to_every_rank(run: Config, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    assert start(monkeypatch, run, SAVE_AND_END, number) == STOPPED
    assert [(Path(run.run.dir) / f"got-{rank}").read_text() for rank in (0, 1)] == [number.name] * 2


@pytest.mark.slow
def test_a_hangup_that_nohup_switched_off_reaches_nobody(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert start(monkeypatch, run, SAVE_AND_END, signal.SIGHUP, signal.SIGUSR1) == STOPPED
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [(Path(run.run.dir) / f"got-{rank}").read_text() for rank in (0, 1)] == ["SIGUSR1", "SIGUSR1"]


@pytest.mark.slow
def test_the_step_of_an_earlier_start_is_kept(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is stopped before its ranks have read anything must not send the status back to step 0."""
    Path(run.run.dir).mkdir()
    write_status(Path(run.run.dir), "stopped", 12)
    assert start(monkeypatch, run, "ready()\ntime.sleep(60)", signal.SIGTERM) == STOPPED
    assert read_status(Path(run.run.dir)) == {"status": "stopped", "step": 12}
