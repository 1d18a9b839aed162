"""Stop signals: finish the step, save, leave."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers that a stop signal came. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"stopped at once; the last checkpoint stands\n")
            os._exit(128 + number)
        self.signal = signal.Signals(number)

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
