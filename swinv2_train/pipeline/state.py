"""`pipeline.json`: facts about the stages of a pipeline that their run directories do not record.

The state of a stage is in its run directory (`status.json`, `checkpoints/`). This file contains the recipe that it was
started with, the weights that it started from, and the time it took. It is replaced atomically, so that a kill at any
moment leaves the old one or the new one.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.launch.status import write_text
from swinv2_train.reading import UnreadableError, from_object, read_object

FILE = "pipeline.json"
SIGNS_OF_LIFE = ("status.json", "metrics.jsonl", "log.txt", "resolved.yaml")


@dataclass
class Record:
    """Record of one stage."""

    experiment: str
    title: str = ""
    baseline_of: str | None = None
    metric: str = ""
    """Its `checkpoint.best_metric`."""
    metric_mode: str = "min"
    total_steps: int | None = None
    """Length in steps, if the config sets it in steps."""
    begun: float | None = None
    """Time of its first start, in seconds since 1970; earlier results of a repeated stage do not count."""
    working_since: float | None = None
    """Time of its last start, if it has not ended."""
    seconds: float = 0.0
    """Seconds that it has run, over all its starts."""
    source: str | None = None
    source_begun: float | None = None
    """`begun` of the source at that time; shows whether the source was rerun since."""
    weights: str | None = None
    """Checkpoint that it started from."""
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass
class State:
    """The stages of a pipeline, in order."""

    pipeline: str
    stages: dict[str, Record] = field(default_factory=dict)


def read_state(directory: Path) -> State | None:
    """Return the state in a directory; None if there is none.

    Raises:
        UnreadableError: if the file is damaged.
    """
    try:
        values = read_object(directory / FILE)
    except FileNotFoundError:
        return None
    stages = values.get("stages")
    if not isinstance(values.get("pipeline"), str) or not isinstance(stages, dict):
        raise UnreadableError("it does not list the stages of a pipeline")
    return State(values["pipeline"], {name: _record(name, record) for name, record in stages.items()})


def _record(name: str, values: Any) -> Record:
    try:
        return from_object(Record, values)  # another version may have written more keys
    except UnreadableError as error:
        raise UnreadableError(f"stage {name}: {error}") from error


def write_state(directory: Path, state: State) -> None:
    """Replace the state in a directory."""
    write_text(directory / FILE, json.dumps(asdict(state), indent=1) + "\n")


def last_sign(run_dir: Path) -> float | None:
    """Return when a run last wrote something, in seconds since 1970; None if it never did."""
    times = []
    for name in SIGNS_OF_LIFE:
        try:
            times.append((run_dir / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=None)


def settle_time(record: Record, ended: float | None) -> None:
    """Add the time from the last start to `ended`; None: it never wrote anything."""
    if record.working_since is not None:
        record.seconds += max(0.0, (ended or record.working_since) - record.working_since)
        record.working_since = None


def now() -> float:
    """Return the current time, in seconds since 1970."""
    return time.time()
