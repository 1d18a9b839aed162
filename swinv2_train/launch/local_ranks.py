"""Start a command several times on this machine, once per rank, and wait for all of them.

For commands that save nothing before their end, such as an evaluation: if one rank fails, the others are ended, and the
command can be rerun. (Training runs, which save before they end, use `launch.launcher`.)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from swinv2_train.config.errors import ConfigError
from swinv2_train.errors import RunError
from swinv2_train.launch.environment import free_port
from swinv2_train.launch.launcher import end_ranks, launch_environment, start_ranks
from swinv2_train.launch.signals import signal_name

LAUNCH_KEYS = ("launch.device", "launch.nproc_per_node")
"""Config keys of the device and the number of ranks."""
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device nodes of GPU drivers; without any of them there is no GPU."""
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 3.0
"""Seconds that ranks may still print and exit by themselves after the first one has failed."""


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
        hint = f"this machine has {available} GPUs, and every rank needs its own; use fewer, or {keys[0]}=cpu"
        raise ConfigError(keys[1], wanted, hint)
    return ("cuda", wanted or available) if available else ("cpu", wanted or 1)


def _count_gpus() -> int:
    # Importing torch takes seconds, so first check whether any GPU driver is there: NVIDIA's, that of WSL, or AMD's.
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
        return _wait(ranks)
    finally:
        end_ranks(ranks)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in ranks]
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                raise RunError(f"rank {rank} died of {signal_name(-code)}, and the others were ended; rerun it")
        failed = next((code for code in codes if code), None)
        if failed is not None:
            deadline = time.monotonic() + _GRACE_SECONDS
            while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
                time.sleep(_POLL_SECONDS)
            return ranks[0].poll() or failed  # the main rank's code is the most specific
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL_SECONDS)
