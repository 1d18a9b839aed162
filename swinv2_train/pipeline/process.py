"""Start `swinv2-train` for a stage, pass stop signals on to it, and see it end.

The stage has a session of its own, so that a Ctrl-C on the terminal reaches it once, through the pipeline. If the
pipeline itself is killed, the kernel sends the stage a SIGTERM (Linux; `prctl(2)`, PR_SET_PDEATHSIG): it finishes its
step, saves and ends, and the next call goes on from there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from swinv2_train.engine.signals import give_back_signals, take_signals

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2


class StopSignals:
    """The stop signals that came to the pipeline while it is open."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous = take_signals(self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def close(self) -> None:
        """Give the signals back to whoever handled them before."""
        give_back_signals(self._previous)


def train_command(launcher: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command that runs a stage; behind a launcher it is `swinv2-train`, as on the command line."""
    if launcher:
        return [*launcher, "swinv2-train", *arguments]
    return [sys.executable, "-m", "swinv2_train.cli.train", *arguments]


def run_command(command: Sequence[str], signals: StopSignals) -> int:
    """Run a command to its end; returns its exit code, negative for the signal that ended it.

    Raises:
        OSError: if there is no such command.
    """
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with(os.getpid()))
    sent = 0
    while True:
        try:
            return process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            new = signals.received[sent:]
            sent += len(new)
            for number in new:
                # Launchers know SIGTERM and SIGINT; a run takes the others for the same request.
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def _end_with(parent: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before this
            os._exit(1)

    return arrange
