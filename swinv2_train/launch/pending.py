"""A sum over all ranks that is under way in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable


class PendingSum:
    """A sum that a thread of this process waits for.

    Args:
        compute: returns the sum; it communicates with the other ranks.
        alone: True if it does not need to wait, because there is only one rank.
    """

    def __init__(self, compute: Callable[[], list[float]], *, alone: bool) -> None:
        self._compute = compute
        self._sums: list[float] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="control sum", daemon=True)
        try:
            if not alone:
                self._thread.start()
                return
        except RuntimeError:  # no more threads: wait for it here
            pass
        self._run()

    def _run(self) -> None:
        try:
            self._sums = self._compute()
        except BaseException as error:
            self._error = error

    def result(self) -> list[float]:
        """Wait for the sum and return it.

        Raises:
            LostRanks: if another rank died or does not respond.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return self._sums

    @property
    def complete(self) -> bool:
        """True if the communication has ended."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the communication has ended, with or without an error, for at most this many seconds."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
