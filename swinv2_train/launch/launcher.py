"""Start the ranks of a run on this machine, forward signals to them, and wait for their end.

The ranks are children of this process, in sessions of their own, so a Ctrl-C on the terminal reaches them once, through
this process. When a rank fails, the others get the time to save before they are killed. If this process is killed, the
ranks notice, save, and end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from swinv2_train.config.compose import to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED, WRONG_USE
from swinv2_train.launch.local_ranks import end_ranks, launch_environment, start_ranks, wait_for_ranks
from swinv2_train.launch.lock import RunLock
from swinv2_train.launch.signals import STOP_FILE, give_back_signals, take_signals
from swinv2_train.launch.status import read_status, write_status
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied

RANK_MODULE = "swinv2_train.cli.train"
LAUNCH_FILES = ".launch-"
"""Prefix of the files that a command passes to its ranks; the run itself writes `resolved.yaml`."""
_SAVE_SECONDS = 30.0
"""Seconds in which ranks may save after another one has failed."""


def rank_command(config_file: Path) -> list[str]:
    """Return the command of a rank, which reads a complete config."""
    return [sys.executable, "-u", "-m", RANK_MODULE, "--resolved", str(config_file)]


def shown(command: list[str], environment: dict[str, str]) -> str:
    """Return a command with its environment in shell syntax."""
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in environment.items()), shlex.join(command)])


class Signals:
    """Stop signals to this command, to forward to the ranks; a signal may arrive before there are any ranks."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._sent: dict[int, int] = {}
        self._previous = take_signals(self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def forward(self, ranks: Sequence[subprocess.Popen[bytes]]) -> None:
        """Send every rank that runs the signals that it has not received yet."""
        for process in ranks:
            for number in self.received[self._sent.get(process.pid, 0) :]:
                process.send_signal(number)  # does nothing if it has ended
            self._sent[process.pid] = len(self.received)

    def restore(self) -> None:
        give_back_signals(self._previous)


def launch(config: Config, num_ranks: int, device: str, port: int) -> int:
    """Start the ranks, wait for them, and return the exit code of the run.

    Forward SIGTERM, SIGINT, SIGHUP, SIGUSR1, and SIGUSR2 to the ranks, which finish their step, save, and exit. If this
    process dies of another signal, the ranks notice and do the same. If ranks die, one message on stderr reports it,
    and `status.json` contains `failed`.
    """
    directory = Path(config.run.dir)
    config_file = launch_file(directory)
    signals = Signals()
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        announce(directory, config, config_file)
        ranks = start_ranks(rank_command(config_file), num_ranks, port, launch_environment(device))
        end = wait_for_ranks(ranks, _SAVE_SECONDS, lambda: signals.forward(ranks))
    finally:
        end_ranks(ranks)
        signals.restore()
        config_file.unlink(missing_ok=True)
    if config.launch.preflight_only and not end.killed:
        return end.code
    return outcome(directory, end.code, end.killed, stopped=bool(signals.received))


def launch_file(directory: Path) -> Path:
    """Return the path at which this command leaves the config for its ranks."""
    return directory / f"{LAUNCH_FILES}{socket.gethostname()}-{os.getpid()}.yaml"


def announce(directory: Path, config: Config, config_file: Path) -> None:
    """Write the config for the ranks, and the status `starting`.

    Raises:
        ConfigError: if `run.dir` is not writable, or another process is training there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not config.launch.preflight_only:
            RunLock(directory).release()  # the main rank will take it; check here that it is free
            for left in directory.glob(f"{LAUNCH_FILES}*"):  # left by a command that was killed
                left.unlink(missing_ok=True)
            (directory / STOP_FILE).unlink(missing_ok=True)  # it was for the previous run
            write_status(directory, "starting", read_status(directory).get("step", 0))
        # The only file with the credentials of URLs: private, and removed when the ranks have ended.
        config_file.touch(mode=0o600)
        config_file.write_text(to_yaml(config))
    except OSError as error:
        raise ConfigError("run.dir", directory, f"cannot be written to ({remedied(error)})") from error


def outcome(directory: Path, code: int, killed: str, *, stopped: bool) -> int:
    """Return the exit code of a run whose ranks have ended; report the end if the ranks could not."""
    status = read_status(directory)
    state = status.get("status")
    if state == "finished":
        if code != FINISHED:
            _say(f"the run is finished; a rank then ended with code {code}")
        return FINISHED
    if state == "stopped" and (stopped or code == STOPPED):
        return STOPPED
    if state == "starting" and stopped:  # there is nothing to save before the first step
        _write_end(directory, "stopped", status)
        return STOPPED
    if code == WRONG_USE and state in ("running", "failed"):  # a run that had begun is not a usage error
        code = FAILED
    if state in ("starting", "running"):
        _write_end(directory, "failed", status)
    if killed or code not in (FAILED, WRONG_USE, INTERRUPTED):  # with these codes, a rank has reported the cause
        what = killed or f"the ranks ended with code {code}, but the run is not finished (status: {state})"
        _say(f"{what}; rerun the same command to resume from the newest checkpoint")
        return FAILED
    return code


def _write_end(directory: Path, state: str, status: dict[str, Any]) -> None:
    try:
        write_status(directory, state, status.get("step", 0))
    except OSError as error:
        _say(f"status.json cannot be written: {remedied(error)}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; the ranks must still be supervised
        print(redact(f"swinv2-train: {text}"), file=sys.stderr, flush=True)
