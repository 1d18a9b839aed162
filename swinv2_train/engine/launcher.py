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

from swinv2_train.config.schema import Config
from swinv2_train.engine.status import read_status
from swinv2_train.exit_codes import FAILED, FINISHED

RANK_MODULE = "swinv2_train.cli.train"


def launch_command(num_ranks: int, resolved: Path, port: int | str) -> list[str]:
    """The command that starts `num_ranks` ranks on this machine from a resolved config."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(num_ranks)]
    options = ["--no_local_rank", "--master_port", str(port), "--log_level", "error"]
    return [*launcher, *options, "--module", RANK_MODULE, "--resolved", str(resolved)]


def launch_environment(device: str, num_ranks: int) -> dict[str, str]:
    """The variables that the ranks get beside the present ones."""
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    return {"DS_ACCELERATOR": device, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def shown(command: list[str], environment: dict[str, str]) -> str:
    """A command with its environment as one types it."""
    return " ".join([*(f"{key}={value}" for key, value in environment.items()), shlex.join(command)])


def _ranks_below(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            arguments = child.cmdline()
        except psutil.Error:
            continue
        if RANK_MODULE in arguments and not any("deepspeed.launcher" in part for part in arguments):
            found.append(child)
    return found


def launch(config: Config, num_ranks: int, device: str, resolved: Path, port: int) -> int:
    """Start the ranks, wait for them, and return the exit code of the run.

    SIGTERM and SIGINT are passed on to the ranks, which finish their step, save and exit.
    """
    environment = {**os.environ, **launch_environment(device, num_ranks)}
    # In a session of its own a Ctrl-C on the terminal reaches the ranks once, through us, and not the launcher.
    process = subprocess.Popen(launch_command(num_ranks, resolved, port), env=environment, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        for rank in _ranks_below(process):
            try:
                rank.send_signal(number)
            except psutil.Error:
                continue

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code == FINISHED:
        status = read_status(Path(config.run.dir)).get("status", "unknown")
        if status != "finished":
            print(f"swinv2-train: the launcher ended, but the run is not finished (status: {status})", file=sys.stderr)
            return FAILED
    return code if code >= 0 else FAILED
