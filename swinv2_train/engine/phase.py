"""Activity of the main thread, reported to the watchdog and the step clock by one context manager."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from swinv2_train.launch.watchdog import Watchdog
from swinv2_train.tracking.clock import StepClock


class Phases:
    """Phases of the main thread.

    Args:
        watchdog: ends the rank if a phase exceeds its time limit, and includes the phase in its report.
        clock: measures only training; it is paused in every other phase.
    """

    def __init__(self, watchdog: Watchdog, clock: StepClock) -> None:
        self.watchdog, self.clock = watchdog, clock

    def training(self, step: int, doing: str) -> None:
        """Begin a part of a training step, under the time limit for steps.

        Args:
            step: the step that was completed last.
            doing: a few words for the watchdog's report.
        """
        self.watchdog.doing = doing
        self.watchdog.now("step", step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for the next batch; the clock counts the time as data wait."""
        self.watchdog.doing = "waiting for data"
        with self.clock.waiting():
            yield

    @contextmanager
    def __call__(self, doing: str, limit: str | None = None, step: int = 0) -> Iterator[None]:
        """Do something other than training: the clock is paused inside this block.

        Args:
            doing: a few words for the watchdog's report.
            limit: the activity whose time limit applies (see `Watchdog.now`); None keeps the current one running.
            step: the step that was completed last.
        """
        before = self.watchdog.doing
        self.watchdog.doing = doing
        if limit is not None:
            self.watchdog.now(limit, step)
        with self.clock.paused():
            yield
        self.watchdog.doing = before  # not after an exception, so that the report names the phase that failed
