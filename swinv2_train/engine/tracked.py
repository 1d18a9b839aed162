"""The tracker of a run, opened before the first step and closed with the run's status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data import remarks
from swinv2_train.engine.state import TrainState
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.launch.failures import on_main
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.status import write_status
from swinv2_train.shortage import remedied
from swinv2_train.tracking.tracker import Tracker

_logger = logging.getLogger("swinv2_train")


@dataclass
class End:
    """End of a run; filled in while it runs."""

    state: Callable[[], TrainState]
    """Returns the state that the run has reached."""
    code: int | None = None
    """Exit code; None after an exception."""


@contextmanager
def tracked(config: Config, plan: Plan, state: TrainState, ranks: Ranks) -> Iterator[tuple[Tracker, End]]:
    """Open the tracker of a run, and close it with the run's status, which is also written to status.json.

    Args:
        state: state that the run starts from.
    """
    directory = Path(config.run.dir)
    progress = {"total_steps": plan.total_steps, "start_step": state.step}
    end = End(lambda: state)
    tracker: Tracker | None = None
    handler: _ToTracker | None = None
    try:
        # Only the main rank's tracker can fail; those of the other ranks do nothing.
        main = on_main(ranks, lambda: Tracker(directory, config, is_main=True, **progress))
        tracker = main or Tracker(directory, config, is_main=False, **progress)
        handler = _ToTracker(tracker)
        _logger.addHandler(handler)
        yield tracker, end
    finally:
        if handler is not None:
            _logger.removeHandler(handler)
        status = {FINISHED: "finished", STOPPED: "stopped"}.get(end.code, "failed")
        if tracker is not None:
            for line in remarks.lines():
                tracker.message(line)
            tracker.close(status)
        if ranks.is_main:
            try:
                write_status(directory, status, end.state().step)
            except OSError as error:
                print(f"swinv2-train: status.json cannot be written: {remedied(error)}", file=sys.stderr)


class _ToTracker(logging.Handler):
    """Forwards warnings of the data code (a truncated shard, a failing server) to the run's log."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(logging.WARNING)
        self._tracker = tracker

    def emit(self, record: logging.LogRecord) -> None:
        self._tracker.warn(record.getMessage())
