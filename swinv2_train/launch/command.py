"""Run `swinv2-train` as a separate process, forward stop signals to it, and wait for its end.

For pipelines and sweeps, which run several runs one after the other. The run has its own session, so a Ctrl-C on the
terminal reaches it once, through its parent. If the parent is killed, the kernel sends the run a SIGTERM (Linux;
`prctl(2)`, PR_SET_PDEATHSIG): it finishes its step, saves, and ends, and the next call resumes from there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO

from swinv2_train.import_path import import_variables
from swinv2_train.launch.signals import give_back_signals, take_signals

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2
_PIPE_SECONDS = 2.0
"""Seconds that a run may leave its stderr open after its end, through a surviving child process."""


class StopSignals:
    """Stop signals that reach this process while it is open."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous = take_signals(self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def close(self) -> None:
        """Restore the previous signal handlers."""
        give_back_signals(self._previous)


def train_command(launcher: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the command of a run; behind a launcher it is `swinv2-train`, as on the command line."""
    if launcher:
        return [*launcher, "swinv2-train", *arguments]
    return [sys.executable, "-m", "swinv2_train.cli.train", *arguments]


def run_command(
    command: Sequence[str],
    signals: StopSignals,
    *,
    stop: Callable[[], bool] | None = None,
    last_errors: deque[str] | None = None,
) -> int:
    """Run a command to its end and return its exit code, negative for the signal that ended it.

    Args:
        stop: polled all the time; once it returns True, the command gets a SIGTERM.
        last_errors: collects the lines that the command writes to stderr, which are also printed.

    Raises:
        OSError: if the command does not exist.
    """
    process = subprocess.Popen(
        command,
        # The user's launcher may be, or start, a different Python.
        env={**os.environ, **import_variables()} if command[0] == sys.executable else None,
        start_new_session=True,
        preexec_fn=_end_with(os.getpid()),
        stderr=None if last_errors is None else subprocess.PIPE,
    )
    reader = None
    if last_errors is not None and process.stderr is not None:
        reader = threading.Thread(target=_pass_on, args=(process.stderr, last_errors), daemon=True)
        reader.start()
    sent, stopped = 0, False
    while True:
        try:
            code = process.wait(_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            new = signals.received[sent:]
            sent += len(new)
            for number in new:
                # Launchers know SIGTERM and SIGINT; a run treats the other signals as the same request.
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            if stop is not None and not stopped and stop():
                stopped = True
                process.send_signal(signal.SIGTERM)
    if reader is not None:
        reader.join(_PIPE_SECONDS)
    return code


def _pass_on(stream: IO[bytes], lines: deque[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.decode(errors="replace").rstrip())
            with contextlib.suppress(OSError):  # our own reader may have exited
                os.write(2, line)


def _end_with(parent: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the prctl call
            os._exit(1)

    return arrange
