"""Start the ranks of a run on this machine, forward signals to them, and wait for their end.

The ranks are children of this process, in sessions of their own, so a Ctrl-C on the terminal reaches them once, through
this process. When a rank fails, the others may still report why they end; then they get a SIGTERM, and after 30 seconds
a SIGKILL, which also ends a suspended process. If this process is killed, the ranks notice, save, and end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from swinv2_train.config.compose import to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED, WRONG_USE
from swinv2_train.import_path import import_variables
from swinv2_train.launch.lock import RunLock
from swinv2_train.launch.signals import PARENT_VARIABLE, STOP_FILE, give_back_signals, signal_name, take_signals
from swinv2_train.launch.status import read_status, write_status
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied

RANK_MODULE = "swinv2_train.cli.train"
LAUNCH_FILES = ".launch-"
"""Prefix of the files that a command passes to its ranks; the run itself writes `resolved.yaml`."""
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 1.0
"""Seconds that ranks may still report and exit by themselves after the first one has failed."""
_SAVE_SECONDS = 30.0
"""Seconds from then on until those that still run are killed."""


def rank_command(config_file: Path) -> list[str]:
    """Return the command of a rank, which reads a complete config."""
    return [sys.executable, "-u", "-m", RANK_MODULE, "--resolved", str(config_file)]


def launch_environment(device: str) -> dict[str, str]:
    """Return the variables that ranks need in addition to the current ones and their own."""
    return {"DS_ACCELERATOR": device}


def shown(command: list[str], environment: dict[str, str]) -> str:
    """Return a command with its environment in shell syntax."""
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in environment.items()), shlex.join(command)])


def start_ranks(
    command: Sequence[str], num_ranks: int, port: int, environment: Mapping[str, str]
) -> list[subprocess.Popen[bytes]]:
    """Start a command once per rank on this machine, in sessions of their own; `environment` is in addition to ours."""
    shared = {
        **os.environ,
        **import_variables(),
        **environment,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        PARENT_VARIABLE: str(os.getpid()),
    }
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(num_ranks):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=own, start_new_session=True))
    except OSError:
        end_ranks(ranks)
        raise
    return ranks


def end_ranks(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill the ranks that still run."""
    for process in ranks:
        with contextlib.suppress(OSError):
            process.kill()
    for process in ranks:
        process.wait()


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
        ended = _wait(ranks, signals)
    finally:
        end_ranks(ranks)
        signals.restore()
        config_file.unlink(missing_ok=True)
    died = {rank: -code for rank, code in ended.items() if code < 0}
    code = ended[min(ended)]
    if config.launch.preflight_only and not died:
        return code
    killed = " and ".join(f"rank {rank} died of {signal_name(number)}" for rank, number in died.items())
    return outcome(directory, code, killed, stopped=bool(signals.received))


def _wait(ranks: Sequence[subprocess.Popen[bytes]], signals: Signals) -> dict[int, int]:
    """Wait for the end of all ranks, and return the exit codes of those that failed first, by rank.

    Later failures are consequences. If none failed, return the codes of all.
    """
    failed: dict[int, int] = {}
    since = 0.0
    asked = False
    while True:
        codes = {rank: process.poll() for rank, process in enumerate(ranks)}
        if not failed:
            failed = {rank: code for rank, code in codes.items() if code not in (None, FINISHED, STOPPED)}
            since = time.monotonic()
        if None not in codes.values():
            return failed or {rank: code for rank, code in codes.items() if code is not None}
        signals.forward(ranks)
        waited = time.monotonic() - since
        if failed and waited > _REPORT_SECONDS and not asked:
            asked = True
            for process in ranks:
                process.terminate()
        if failed and waited > _REPORT_SECONDS + _SAVE_SECONDS:
            end_ranks(ranks)
        time.sleep(_POLL_SECONDS)


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
