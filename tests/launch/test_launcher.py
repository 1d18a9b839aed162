"""The command's response to the end of its ranks, with small processes instead of DeepSpeed's launcher and ranks."""

from __future__ import annotations

import json
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
from swinv2_train.launch import launcher
from swinv2_train.launch.status import read_status, write_status

pytestmark = pytest.mark.usefixtures("default_signals")

LAUNCHER = """
import json, os, subprocess, sys, time
from pathlib import Path
run, rank_code, rest = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
ranks = []
for rank in range(2):
    command = [sys.executable, "-c", rank_code, str(run), "swinv2_train.cli.train"]
    ranks.append(subprocess.Popen(command, env={**os.environ, "RANK": str(rank)}))
while not all((run / f"ready-{rank}").exists() for rank in range(2)):
    time.sleep(0.02)
(run / "pids").write_text(json.dumps([rank.pid for rank in ranks]))
exec(rest)
"""
RANK = """
import json, os, signal, sys, time
from pathlib import Path
run, rank = Path(sys.argv[1]), os.environ["RANK"]
def status(text, step):
    (run / "status.json").write_text(json.dumps({"status": text, "step": step}))
def ready():
    (run / f"ready-{rank}").touch()
"""
WAIT = "time.sleep(1)\nsys.exit(next((code & 0xFF for code in [rank.wait() for rank in ranks] if code), 0))"
"""The launcher sees its ranks die later than the command does, and ends with the code of one that failed."""


@pytest.fixture
def run(tmp_path: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(hostile)  # what runs below the command imports nothing from there
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    options = ["+experiment=simmim_demo", f"run.dir={tmp_path / 'run'}"]
    return compose([*options, "watchdog.step_minutes=0.01", "watchdog.save_minutes=0.02"], None)


def start(monkeypatch: pytest.MonkeyPatch, config: Config, rank: str, rest: str = WAIT) -> int:
    """Launch two ranks that do `RANK` and then `rank`, below a launcher that does `rest` when they are there."""
    command = [sys.executable, "-c", LAUNCHER, config.run.dir, RANK + textwrap.dedent(rank), rest]
    monkeypatch.setattr(launcher, "launch_command", lambda *_: command)
    try:
        return launcher.launch(config, 2, "cpu", 0)
    finally:
        for pid in json.loads((Path(config.run.dir) / "pids").read_text()):
            assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


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


def test_a_launcher_that_ends_well_proves_nothing(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, run, "status('running', 20)\nready()\ntime.sleep(0.5)") == FAILED
    assert "the launcher ended with code 0, but the run is not finished (status: running)" in capfd.readouterr().err
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
def test_ranks_that_are_left_behind_are_asked_to_save(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run.watchdog.save_minutes = 1.0
    assert start(monkeypatch, run, SAVE_AND_END, "time.sleep(0.5)\nos._exit(0)") == STOPPED
    assert [(Path(run.run.dir) / f"got-{rank}").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]
    assert "the launcher died; its ranks finish the step, save and end" in capfd.readouterr().err


@pytest.mark.slow
def test_ranks_that_are_left_behind_and_deaf_are_killed(
    run: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nstatus('running', 20)\nready()\ntime.sleep(60)"
    assert start(monkeypatch, run, deaf, "time.sleep(0.5)\nos._exit(0)") == FAILED
    assert "the run is not finished" in capfd.readouterr().err
    assert read_status(Path(run.run.dir)) == {"status": "failed", "step": 20}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_goes_on_to_every_rank(run: Config, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    send = f"os.kill({os.getpid()}, {int(number)})\n{WAIT}"
    assert start(monkeypatch, run, SAVE_AND_END, send) == STOPPED
    assert [(Path(run.run.dir) / f"got-{rank}").read_text() for rank in (0, 1)] == [number.name] * 2


@pytest.mark.slow
def test_a_hangup_that_nohup_switched_off_reaches_nobody(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send = f"os.kill({os.getpid()}, 1)\n[rank.send_signal(1) for rank in ranks]\ntime.sleep(0.5)\n"
        send += f"[rank.send_signal(10) for rank in ranks]\n{WAIT}"
        assert start(monkeypatch, run, SAVE_AND_END, send) == STOPPED
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [(Path(run.run.dir) / f"got-{rank}").read_text() for rank in (0, 1)] == ["SIGUSR1", "SIGUSR1"]


@pytest.mark.slow
def test_the_step_of_an_earlier_start_is_kept(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is stopped before its ranks have read anything must not send the status back to step 0."""
    Path(run.run.dir).mkdir()
    write_status(Path(run.run.dir), "stopped", 12)
    send = f"os.kill({os.getpid()}, 15)\n{WAIT}"
    assert start(monkeypatch, run, "ready()\ntime.sleep(60)", send) == STOPPED
    assert read_status(Path(run.run.dir)) == {"status": "stopped", "step": 12}
