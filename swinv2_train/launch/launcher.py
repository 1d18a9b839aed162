"""Start the ranks of a run on this machine with DeepSpeed's launcher, forward signals to them, and wait for their end.

On one machine this is `deepspeed.launcher.launch`, which the `deepspeed` command would start as well, seconds later and
with another process in between. It forwards a SIGTERM to one rank after the other, waiting up to 30 seconds for each,
and leaves its ranks behind when it is killed. Therefore this module signals the ranks directly, reads success from the
run directory, and ends ranks that are left behind. When one rank is killed, the launcher ends the others: SIGTERM, and
after 30 seconds SIGKILL, which also ends a suspended process.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

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
_POLL_SECONDS = 0.2


def launch_command(num_ranks: int, config_file: Path, port: int | str) -> list[str]:
    """Return the command that starts `num_ranks` ranks on this machine from a complete config."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    devices = visible[:num_ranks] if len(visible) >= num_ranks else list(range(num_ranks))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    options = ["--no_local_rank", "--master_port", str(port), "--log_level", "critical"]
    return [*launcher, *options, "--module", RANK_MODULE, "--resolved", str(config_file)]


def launch_environment(device: str) -> dict[str, str]:
    """Return the variables that the launcher and the ranks need in addition to the current ones."""
    return {"DS_ACCELERATOR": device}


def shown(command: list[str], environment: dict[str, str]) -> str:
    """Return a command with its environment in shell syntax."""
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in environment.items()), shlex.join(command)])


@dataclass
class _Rank:
    """Process of a rank. The launcher reaps it; its exit status can be read only between its death and that."""

    number: int
    process: psutil.Process
    killed_by: int | None = None
    """The signal that killed it, if observed."""

    def lives(self) -> bool:
        """True if the process still exists; records the signal that killed it."""
        try:
            if not self.process.is_running():
                return False
            if self.process.status() != psutil.STATUS_ZOMBIE:
                return True
            # The last field is the exit status as returned by `wait`; psutil does not expose it for a process of
            # another parent.
            code = int(Path(f"/proc/{self.process.pid}/stat").read_text().split()[-1])
            self.killed_by = self.killed_by or code & 0x7F or None
        except (psutil.Error, OSError, ValueError):
            return False
        return False


class _Family:
    """The ranks below the launcher."""

    def __init__(self, launcher: subprocess.Popen, size: int) -> None:
        self._launcher, self._size = launcher, size
        self._ranks: dict[int, _Rank] = {}
        self.first_dead: list[_Rank] = []
        """Ranks that ended first. The launcher may have ended the others."""

    def look(self) -> list[_Rank]:
        """Return the ranks that are alive."""
        if len(self._ranks) < self._size:  # scanning every process on the machine is not free
            for process in _ranks_below(self._launcher.pid):
                number = _rank_number(process)
                if number is not None:
                    self._ranks.setdefault(process.pid, _Rank(number, process))
        alive = [rank for rank in self._ranks.values() if rank.lives()]
        if not self.first_dead:
            self.first_dead = [rank for rank in self._ranks.values() if rank not in alive]
        return alive


def _ranks_below(launcher: int) -> list[psutil.Process]:
    found = []
    try:
        children = psutil.Process(launcher).children(recursive=True)
    except psutil.Error:
        return []
    for child in children:
        try:
            arguments = child.cmdline()
        except psutil.Error:
            continue
        if RANK_MODULE in arguments and not any("deepspeed.launcher" in part for part in arguments):
            found.append(child)
    return found


def _rank_number(process: psutil.Process) -> int | None:
    try:
        return int(process.environ()["RANK"])
    except (psutil.Error, KeyError, ValueError):  # it has already exited, or has not yet executed its program
        return None


class Signals:
    """Stop signals to this command, to forward to the ranks; a signal may arrive before there are any ranks."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._sent: dict[int, int] = {}
        self._previous = take_signals(self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def forward(self, ranks: list[_Rank]) -> None:
        """Send every rank the signals that it has not received yet."""
        for rank in ranks:
            process = rank.process
            for number in self.received[self._sent.get(process.pid, 0) :]:
                try:
                    process.send_signal(number)
                except psutil.Error:
                    break
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
    environment = {**os.environ, **import_variables(), **launch_environment(device), PARENT_VARIABLE: str(os.getpid())}
    signals = Signals()
    try:
        announce(directory, config, config_file)
        # In its own session, the launcher does not receive a Ctrl-C on the terminal; the ranks get it once, through us.
        command = launch_command(num_ranks, config_file, port)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        family = _Family(process, num_ranks)
        while True:
            alive = family.look()
            signals.forward(alive)
            try:
                code = process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        left_behind = bool(family.look())
        killed = _killed(family.first_dead, code)  # we may have caused later deaths
        if left_behind:
            _end_the_rest(family, signals, 60 * (config.watchdog.step_minutes + config.watchdog.save_minutes))
    finally:
        signals.restore()
        config_file.unlink(missing_ok=True)
    if config.launch.preflight_only and not killed:
        return code
    if read_status(directory).get("status") == "finished" and (left_behind or code == FINISHED):
        return FINISHED
    return outcome(directory, code, killed, stopped=bool(signals.received) or left_behind)


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


def _end_the_rest(family: _Family, signals: Signals, patience: float) -> None:
    """Ask ranks that outlived their launcher to save and end; kill those that do not end within `patience` seconds."""
    _say("the launcher died; its ranks finish the step, save and end")
    signals.received.append(signal.SIGTERM)
    deadline = time.monotonic() + patience
    while alive := family.look():
        signals.forward(alive)
        if time.monotonic() > deadline:
            for rank in alive:
                with contextlib.suppress(psutil.Error):
                    rank.process.kill()
        time.sleep(_POLL_SECONDS)


def _killed(first_dead: list[_Rank], code: int) -> str:
    """Return the ranks that a signal killed, and the signals, as text; empty if none was observed."""
    known = [f"rank {rank.number} died of {signal_name(rank.killed_by)}" for rank in first_dead if rank.killed_by]
    if not known and code > 256 - signal.NSIG:  # the launcher exits with its rank's negative signal, as a byte
        who = f"rank {first_dead[0].number}" if len(first_dead) == 1 else "a rank"
        known = [f"{who} died of {signal_name(256 - code)}"]
    return " and ".join(known)


def outcome(directory: Path, code: int, killed: str, *, stopped: bool) -> int:
    """Return the exit code of a run whose ranks have ended; report the end if the ranks could not."""
    status = read_status(directory)
    state = status.get("status")
    if state == "finished":
        if code != FINISHED:
            _say(f"the run is finished; its launcher then ended with code {code}")
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
        what = killed or f"the launcher ended with code {code}, but the run is not finished (status: {state})"
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
