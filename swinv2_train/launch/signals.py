"""Stop requests: finish the step, or the next one (see `engine/feed.py`), save, and exit.

SIGTERM, SIGINT, SIGHUP, SIGUSR1, and SIGUSR2 on any rank stop the entire run (Slurm's `--signal` and other schedulers
send the last two ahead of time). A rank whose launcher has died treats that as a request too, because nothing else
would stop it. Signals that reach the ranks, as observed with torch 2.15 and DeepSpeed 0.19:

- `torchrun` forwards SIGTERM, SIGINT, and SIGHUP to all its ranks, waits 30 seconds, and then kills them. Any other
  signal, including SIGUSR1 and SIGKILL, ends it without a signal to the ranks: they see their parent change.
- `deepspeed` is two processes on one machine, `deepspeed.launcher.runner` and below it `deepspeed.launcher.launch`, the
  parent of the ranks. A signal to the runner ends only the runner; `launch` continues with another parent, which the
  ranks also monitor. `launch` forwards SIGTERM to one rank after the other, with 30 seconds for each.
- `swinv2-train` forwards all five to its ranks itself. If it is killed, they see that its process is gone.

A shell does not count as a launcher: ranks that were started by hand continue after a logout.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from swinv2_train.exit_codes import INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PARENT_VARIABLE = "SWINV2_TRAIN_PARENT"
"""Process id of the command that started this rank, if there is one."""
STOP_FILE = "STOP"
"""A file of this name in the run directory stops the run like a signal; it is the way to stop ranks on other hosts.

It stays until the next start, so that a supervisor can distinguish this from a stop by the batch system.
"""
KEEP_STOP_VARIABLE = "SWINV2_KEEP_STOP"
"""If set, the starting command has removed an old `STOP`, so an existing one is for these ranks."""
_FINISHING = "finishing the step and saving"
_LOOK_SECONDS = 1.0
"""Seconds between two checks for the file by the main rank."""
_SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh", "csh", "tcsh", "ash", "busybox")


class StopRequest:
    """Records that a stop was requested (see above). A second Ctrl-C ends the process immediately."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._command = int(os.environ.get(PARENT_VARIABLE, "0"))
        self._launchers = _launchers()
        self._left_alone = False
        self._cause = "a request to another rank"
        self._file: Path | None = None
        self._looked = 0.0
        self._previous = take_signals(self._receive)

    @property
    def requested(self) -> bool:
        """True if this rank should stop; cheap enough to check in every step."""
        if self.signal is None and not self._left_alone and self._orphaned():
            self._left_alone = True
            self._cause = "the end of its launcher"
            _say(f"the launcher of this rank has died: {_FINISHING}")
        if self.signal is None and self._file_appeared():
            self.signal = signal.SIGTERM
            self._cause = f"the file {self._file}"
            _say(f"{self._file}: {_FINISHING}; Ctrl-C stops immediately")
        return self.signal is not None or self._left_alone

    @property
    def cause(self) -> str:
        """The signal or the file that stopped the run, as far as this rank knows it."""
        return self._cause

    def watch(self, file: Path) -> None:
        """Treat the appearance of this file as a request. Only one rank should poll it."""
        self._file = file

    def _file_appeared(self) -> bool:
        if self._file is None or time.monotonic() - self._looked < _LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        return self._file.exists()

    def _orphaned(self) -> bool:
        if self._command and not _runs(self._command):
            return True
        # A child gets another parent at the moment when its own dies, even before that one is reaped.
        return any(_parent_of(child) != parent for child, parent in self._launchers)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            _say("stopped immediately; earlier checkpoints remain valid")
            os._exit(INTERRUPTED)
        self.signal = signal.Signals(number)
        self._cause = self.signal.name
        again = "another Ctrl-C" if number == signal.SIGINT else "Ctrl-C"
        _say(f"{self.signal.name}: {_FINISHING}; {again} stops immediately")

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        give_back_signals(self._previous)


def take_signals(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Install a handler for the stop signals, except a SIGHUP that `nohup` ignores; return the previous handlers."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, previous in before.items():
        if not (number == signal.SIGHUP and previous == signal.SIG_IGN):
            signal.signal(number, handler)
    return before


def give_back_signals(before: dict[signal.Signals, Any]) -> None:
    """Undo `take_signals`."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _say(text: str) -> None:
    # print is not safe inside a signal handler, and the reader may be gone with the launcher or the terminal.
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"\nswinv2-train: {text}\n".encode())


def _launchers() -> list[tuple[int, int]]:
    """Return pairs of a process and its parent, which persist as long as the launcher of this rank lives."""
    own, parent = os.getpid(), os.getppid()
    if not ("RANK" in os.environ and "WORLD_SIZE" in os.environ) or not _is_launcher(parent):
        return []
    pairs = [(own, parent)]
    with contextlib.suppress(psutil.Error):
        if "deepspeed.launcher.launch" in psutil.Process(parent).cmdline():
            above = psutil.Process(parent).ppid()
            if _is_launcher(above):
                pairs.append((parent, above))
    return pairs


def _is_launcher(process: int) -> bool:
    try:
        return process > 1 and psutil.Process(process).name() not in _SHELLS
    except psutil.Error:
        return False


def _parent_of(process: int) -> int:
    if process == os.getpid():
        return os.getppid()
    try:
        return psutil.Process(process).ppid()
    except psutil.Error:
        return 0


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def signal_name(number: int) -> str:
    """Return the name of a signal."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} (the kernel sends it when memory runs out)" if number == signal.SIGKILL else name
