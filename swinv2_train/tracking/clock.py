"""Throughput: images per second, the fraction of time spent waiting for data, and the time left.

`paused()` excludes the time spent evaluating, saving, or drawing, so these numbers are only about training. On an
accelerator a step returns before its work is done; read the clock right after fetching numbers from the device, when
everything queued has finished.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SMOOTHING = 0.3
"""Weight of the newest interval in the pace that the estimate of the time left uses."""


@dataclass(frozen=True)
class Throughput:
    """Throughput since the clock was last read."""

    steps: int
    """Optimizer steps in the interval."""
    seconds_per_step: float
    """Mean seconds of a step, excluding pauses; nan without a step."""
    images_per_second: float
    """Samples per second over all ranks, excluding pauses; nan without a step."""
    data_wait_share: float
    """Fraction of the interval in which the loop waited for its next batch."""
    seconds_left: float
    """Estimated wall-clock seconds to the end, including pauses at the rate so far; nan before the first step."""


class StepClock:
    """Measures optimizer steps.

    Args:
        global_batch: samples in one optimizer step over all ranks.
        now: returns the time in seconds; tests pass their own.
    """

    def __init__(self, global_batch: int, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._global_batch = global_batch
        self._now = now
        self._pause_depth = 0
        self._pause_began = 0.0
        self._paused = 0.0
        self._began = now()
        self._read_at = 0.0
        self._waited = 0.0
        self._steps = 0
        self._total_steps = 0
        self._pace = math.nan

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this block as waiting for data."""
        began = self._active()
        try:
            yield
        finally:
            self._waited += self._active() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside this block (evaluation, saving, figures). Blocks may be nested."""
        if self._pause_depth == 0:
            self._pause_began = self._now()
        self._pause_depth += 1
        try:
            yield
        finally:
            self._pause_depth -= 1
            if self._pause_depth == 0:
                self._paused += self._now() - self._pause_began

    def step(self) -> None:
        """Count a finished optimizer step."""
        self._steps += 1

    def read(self, steps_left: int) -> Throughput:
        """Return the numbers since the last read (or the start), and the time that `steps_left` more steps will
        take."""
        active = self._active()
        elapsed, steps, waited = active - self._read_at, self._steps, self._waited
        self._read_at, self._steps, self._waited = active, 0, 0.0
        self._total_steps += steps
        seconds = elapsed / steps if steps else math.nan
        if steps:
            # The first step includes the start of workers and kernels: if it was read alone, the estimate starts again
            # with the second interval. A moving average forgets it otherwise.
            alone = self._total_steps - steps <= 1
            pace = seconds if math.isnan(self._pace) or alone else self._pace
            self._pace = pace + _SMOOTHING * (seconds - pace)
        pause_per_step = self._paused / self._total_steps if self._total_steps else 0.0
        return Throughput(
            steps=steps,
            seconds_per_step=seconds,
            images_per_second=self._global_batch / seconds if seconds > 0 else math.nan,
            data_wait_share=waited / elapsed if elapsed > 0 else 0.0,
            seconds_left=steps_left * (self._pace + pause_per_step),
        )

    def _active(self) -> float:
        """Return the seconds since the clock was created, excluding pauses."""
        until = self._pause_began if self._pause_depth else self._now()
        return until - self._began - self._paused
