"""Start a command several times on this machine, once per rank, and wait for all of them.

`run_ranks` is for commands that save nothing before their end, such as an evaluation, and can be rerun; training runs
use `launch.launcher`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swinv2_train.config.errors import ConfigError
from swinv2_train.errors import RunError
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.import_path import import_variables
from swinv2_train.launch.environment import free_port
from swinv2_train.launch.signals import PARENT_VARIABLE, signal_name
from swinv2_train.text import counted

LAUNCH_KEYS = ("launch.device", "launch.nproc_per_node")
"""Config keys of the device and the number of ranks."""
DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""Device nodes of GPU drivers: NVIDIA's, that of Jetson, that of WSL, and AMD's."""
_POLL_SECONDS = 0.05
_REPORT_SECONDS = 3.0
"""Seconds in which ranks may still report and exit by themselves after the first one has failed."""


def choose_ranks(
    device: str, wanted: int | None, keys: tuple[str, str] = ("device", "ranks"), *, only_planned: bool = False
) -> tuple[str, int]:
    """Return the device, cuda or cpu, and the number of ranks to start: as requested, or else one per GPU, or one.

    Args:
        device: auto, cuda, or cpu.
        keys: the user's names for both settings.
        only_planned: True if the ranks will not be started, so there may be more of them than GPUs.

    Raises:
        ConfigError: if this machine has no GPU or not enough of them.
    """
    if device == "cpu":
        return "cpu", wanted or 1
    available = _count_gpus()
    if device == "cuda" and not available:
        raise ConfigError(keys[0], "cuda", f"no CUDA device is visible here; use {keys[0]}=cpu")
    if available and (wanted or 1) > available and not only_planned:
        gpus = counted(available, "GPU")
        hint = f"this machine has {gpus}, and every rank needs its own; use fewer, or {keys[0]}=cpu"
        raise ConfigError(keys[1], wanted, hint)
    return ("cuda", wanted or available) if available else ("cpu", wanted or 1)


def _count_gpus() -> int:
    # Importing torch takes seconds, so first check whether there is any driver.
    if sys.platform == "linux" and not any(Path(node).exists() for node in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def run_ranks(module: str, arguments: Sequence[str], num_ranks: int, device: str) -> int:
    """Run `python -m module arguments` as `num_ranks` ranks and return 0, or the exit code of one that failed.

    The ranks have their own sessions, so a Ctrl-C reaches only this process; if it ends for any reason, they end too.

    Args:
        device: cuda or cpu.

    Raises:
        RunError: if a rank died of a signal.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    environment = {**launch_environment(device), "OMP_NUM_THREADS": threads}
    ranks = start_ranks([sys.executable, "-m", module, *arguments], num_ranks, free_port(), environment)
    try:
        end = wait_for_ranks(ranks)
    finally:
        end_ranks(ranks)
    if end.killed:
        raise RunError(f"{end.killed}, and the others were ended; rerun it")
    return end.code


def launch_environment(device: str) -> dict[str, str]:
    """Return the variables that ranks need in addition to the current ones and their own."""
    return {"DS_ACCELERATOR": device}


def start_ranks(
    command: Sequence[str], num_ranks: int, port: int, environment: Mapping[str, str]
) -> list[subprocess.Popen[bytes]]:
    """Start a command once per rank, in sessions of their own; `environment` is in addition to the current one."""
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


@dataclass(frozen=True)
class RanksEnd:
    """The end of all ranks of a command."""

    code: int
    """Exit code: the main rank's if it failed by itself, because it is the most specific; else that of the lowest rank
    that failed first. Negative for a signal."""
    killed: str
    """The ranks that failed first and died of a signal, and the signals, as text; empty if there are none."""


def wait_for_ranks(
    ranks: Sequence[subprocess.Popen[bytes]], save_seconds: float = 0.0, meanwhile: Callable[[], None] = lambda: None
) -> RanksEnd:
    """Wait for the end of all ranks.

    When the first one fails, the others may still report and exit; then they get a SIGTERM, and after `save_seconds` a
    SIGKILL, which also ends a suspended process.

    Args:
        meanwhile: called all the time.
    """
    first: dict[int, int] = {}
    while not first and any(process.poll() is None for process in ranks):
        first = _failed(ranks)
        meanwhile()
        time.sleep(_POLL_SECONDS)
    first = first or _failed(ranks) or {0: ranks[0].returncode}
    _wait(ranks, _REPORT_SECONDS, meanwhile)
    main = _failed(ranks).get(0, 0)  # below, it may be ended by us
    for process in ranks:
        process.terminate()
    _wait(ranks, save_seconds, meanwhile)
    end_ranks(ranks)
    died = [f"rank {rank} died of {signal_name(-code)}" for rank, code in first.items() if code < 0]
    return RanksEnd(main if main > 0 else first[min(first)], " and ".join(died))


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    codes = {rank: process.poll() for rank, process in enumerate(ranks)}
    return {rank: code for rank, code in codes.items() if code not in (None, FINISHED, STOPPED)}


def _wait(ranks: Sequence[subprocess.Popen[bytes]], seconds: float, meanwhile: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        meanwhile()
        time.sleep(_POLL_SECONDS)
