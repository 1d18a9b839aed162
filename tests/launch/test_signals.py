"""Every way to ask a rank to stop reaches it: signals, and the death of what started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swinv2_train.launch.signals import PARENT_VARIABLE, STOP_SIGNALS, StopRequest

pytestmark = pytest.mark.usefixtures("default_signals")

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2"}
RANK = """
import os, sys, time
from pathlib import Path
from swinv2_train.launch.signals import StopRequest
stop = StopRequest()
Path(sys.argv[1], "pid").write_text(str(os.getpid()))
while not stop.requested:
    time.sleep(0.02)
Path(sys.argv[1], "why").write_text(stop.signal.name if stop.signal else "left alone")
"""
"""A rank: says who it is, runs until it should stop, and says why."""
PYTHON = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen(sys.argv[2:])
while not Path(sys.argv[1]).exists():
    time.sleep(0.02)
"""
SHELL = '"$@" & while [ ! -e "$0" ]; do sleep 0.1; done'
"""Both start what they are given, wait until it is there, and go."""


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> StopRequest:
    for name in ("RANK", "WORLD_SIZE", PARENT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    request = StopRequest()
    yield request
    request.restore()


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_every_stop_signal_is_a_request(stop: StopRequest, number: signal.Signals) -> None:
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.signal == number


def test_a_signal_and_a_file_are_reported_alike(
    stop: StopRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert stop.cause == "a request to another rank"
    os.kill(os.getpid(), signal.SIGTERM)
    by_file = StopRequest()
    by_file.restore()
    by_file.watch(tmp_path / "STOP")
    (tmp_path / "STOP").touch()
    assert by_file.requested
    rest = ": finishing the step and saving; Ctrl-C stops immediately"
    lines = capfd.readouterr().err.split()
    assert " ".join(lines) == f"swinv2-train: SIGTERM{rest} swinv2-train: {tmp_path}/STOP{rest}"
    assert (stop.cause, by_file.cause) == ("SIGTERM", f"the file {tmp_path}/STOP")


def test_the_signals_are_those_of_schedulers_and_terminals() -> None:
    assert {number.name for number in STOP_SIGNALS} == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"}


@pytest.mark.parametrize(
    ("number", "handled"), [(signal.SIGHUP, False), (signal.SIGINT, True), (signal.SIGTERM, True)], ids=str
)
def test_a_hangup_that_is_ignored_at_the_start_stays_ignored(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, handled: bool
) -> None:
    """As under nohup. A shell that starts a background job in a script ignores SIGINT, which is not such a wish."""
    monkeypatch.delenv("RANK", raising=False)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        request = StopRequest()
        os.kill(os.getpid(), number)
        assert request.requested is handled
        request.restore()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    StopRequest().restore()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_lost_terminal_does_not_disturb_the_request(stop: StopRequest) -> None:
    """The handler's own line cannot be written when the reader of stderr is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    try:
        os.dup2(writer, 2)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    assert stop.requested


def rank(directory: Path) -> list[str]:
    return [sys.executable, "-c", RANK, str(directory)]


def wait_for(path: Path) -> str:
    for _ in range(3000):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def test_a_rank_whose_launcher_dies_stops(tmp_path: Path) -> None:
    launcher = [sys.executable, "-c", PYTHON, str(tmp_path / "pid"), *rank(tmp_path)]
    subprocess.run(launcher, env={**os.environ, **LAUNCHED}, check=True)
    assert wait_for(tmp_path / "why") == "left alone"


def test_a_rank_stops_when_the_command_above_its_launchers_dies(tmp_path: Path) -> None:
    command = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    variables = {**os.environ, **LAUNCHED, PARENT_VARIABLE: str(command.pid)}
    process = subprocess.Popen(rank(tmp_path), env=variables)
    wait_for(tmp_path / "pid")
    command.kill()  # and it stays a zombie for now
    assert wait_for(tmp_path / "why") == "left alone"
    command.wait()
    assert process.wait() == 0


@pytest.mark.parametrize("by", ["a shell", "a program that is not a launcher"])
def test_what_was_started_by_hand_goes_on_alone(tmp_path: Path, by: str) -> None:
    """Logging out ends the shell; a run in the background is meant to outlive that."""
    starter = ["sh", "-c", SHELL] if by == "a shell" else [sys.executable, "-c", PYTHON]
    variables = {**os.environ, **LAUNCHED}
    if by != "a shell":
        for name in LAUNCHED:
            del variables[name]
    subprocess.run([*starter, str(tmp_path / "pid"), *rank(tmp_path)], env=variables, check=True)
    time.sleep(0.5)  # some twenty looks at a parent that is gone
    assert not (tmp_path / "why").exists()
    os.kill(int(wait_for(tmp_path / "pid")), signal.SIGUSR1)
    assert wait_for(tmp_path / "why") == "SIGUSR1"
