"""Stop signals: finish the step, save, leave."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import psutil

from swinv2_train.exit_codes import INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PARENT_VARIABLE = "SWINV2_TRAIN_PARENT"
"""Process id of the command that started this rank, where one did."""


class StopRequest:
    """Remembers that a stop signal came. A second Ctrl-C ends the process at once.

    A rank whose starting command has died takes that as a request, too: nobody would stop it otherwise.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._parent = int(os.environ.get(PARENT_VARIABLE, "0"))
        self._previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in self._previous.items():
            if not (number == signal.SIGHUP and handler == signal.SIG_IGN):  # nohup
                signal.signal(number, self._receive)

    @property
    def requested(self) -> bool:
        return self.signal is not None or self._orphaned()

    def _orphaned(self) -> bool:
        if not self._parent:
            return False
        try:
            return psutil.Process(self._parent).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            self._say("stopped at once; what was saved before stands")
            os._exit(INTERRUPTED)
        self.signal = signal.Signals(number)
        self._say(f"{self.signal.name}: finishing the step and saving; a further Ctrl-C stops at once")

    def _say(self, text: str) -> None:
        if os.environ.get("RANK", "0") == "0":  # print is not safe inside a signal handler
            os.write(sys.stderr.fileno(), f"\nswinv2-train: {text}\n".encode())

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
