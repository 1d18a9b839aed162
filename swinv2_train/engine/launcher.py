"""Start the ranks of a run on this machine through the `deepspeed` launcher, and pass signals on to them.

The launcher itself dies of a SIGTERM and leaves its ranks behind, and it may exit with 0 when its helper was killed; so
the signals go to the ranks directly, and success is what the run directory says.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import psutil

from swinv2_train.config.compose import to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.engine.signals import PARENT_VARIABLE, STOP_SIGNALS
from swinv2_train.engine.status import read_status, write_status
from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED

RANK_MODULE = "swinv2_train.cli.train"
LAUNCH_FILE = ".launch.yaml"
"""The config that the command hands to its ranks; `resolved.yaml` is written by the run itself."""
_POLL_SECONDS = 0.2


def launch_command(num_ranks: int, config_file: Path, port: int | str) -> list[str]:
    """The command that starts `num_ranks` ranks on this machine from a complete config."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(num_ranks)]
    options = ["--no_local_rank", "--master_port", str(port), "--log_level", "error"]
    return [*launcher, *options, "--module", RANK_MODULE, "--resolved", str(config_file)]


def launch_environment(device: str, num_ranks: int) -> dict[str, str]:
    """The variables that the ranks get beside the present ones."""
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    return {"DS_ACCELERATOR": device, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def shown(command: list[str], environment: dict[str, str]) -> str:
    """A command with its environment as one types it."""
    return " ".join([*(f"{key}={value}" for key, value in environment.items()), shlex.join(command)])


def _ranks_below(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    try:
        children = psutil.Process(process.pid).children(recursive=True)
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


class _Signals:
    """Stop signals that came to this command, for the ranks; a signal may come before there are any."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._sent: dict[int, int] = {}
        self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def forward(self, process: subprocess.Popen) -> None:
        """Send every rank the signals that it has not had yet."""
        if not self.received:
            return
        for rank in _ranks_below(process):
            for number in self.received[self._sent.get(rank.pid, 0) :]:
                try:
                    rank.send_signal(number)
                except psutil.Error:
                    break
            self._sent[rank.pid] = len(self.received)

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def launch(config: Config, num_ranks: int, device: str, port: int) -> int:
    """Start the ranks, wait for them, and return the exit code of the run.

    SIGTERM, SIGINT and SIGHUP are passed on to the ranks, which finish their step, save and exit; if this process dies
    of another signal, they notice and do the same.
    """
    directory = Path(config.run.dir)
    config_file = directory / LAUNCH_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        config_file.write_text(to_yaml(config))
        write_status(directory, "starting", 0)
    except OSError as error:
        raise ConfigError("run.dir", directory, f"cannot be written to ({error.strerror})") from error
    environment = {**os.environ, **launch_environment(device, num_ranks), PARENT_VARIABLE: str(os.getpid())}
    signals = _Signals()
    try:
        # In a session of its own a Ctrl-C on the terminal reaches the ranks once, through us, and not the launcher.
        command = launch_command(num_ranks, config_file, port)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        while True:
            try:
                code = process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                signals.forward(process)
    finally:
        signals.restore()
        config_file.unlink(missing_ok=True)
    return _outcome(code, read_status(directory).get("status"), stopped=bool(signals.received))


def _outcome(code: int, status: str | None, *, stopped: bool) -> int:
    if code == FINISHED and status != "finished":
        print(f"swinv2-train: the launcher ended, but the run is not finished (status: {status})", file=sys.stderr)
        return FAILED
    if code != FINISHED and stopped and status in ("starting", "stopped"):
        return STOPPED  # before the first step there is nothing to save
    return code if code >= 0 else FAILED
