"""Inspection of a sweep from outside, even while it runs or after it was killed."""

from __future__ import annotations

from pathlib import Path

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.metrics import better_end, checked_direction
from swinv2_train.launch.lock import is_held
from swinv2_train.sweep.job import SWEEP_FILE, JobRecord, SweepRecord, read_jobs, read_sweep
from swinv2_train.sweep.run import LOCKS
from swinv2_train.sweep.values import judged, metric_values


def survey(
    directory: Path, metric: str | None = None, direction: str | None = None
) -> tuple[SweepRecord, list[JobRecord]]:
    """Return a sweep and its jobs, with the current metric from their files.

    Args:
        metric: another metric than the sweep's own.
        direction: its better direction; None: the metric decides.

    Raises:
        ConfigError: if no sweep has run there, one of its files is unusable, or the direction contradicts the metric.
    """
    if not directory.is_dir():
        raise ConfigError(
            "", directory, f"{directory} {'is not a directory' if directory.exists() else 'does not exist'}"
        )
    sweep, jobs = read_sweep(directory), read_jobs(directory)
    if sweep is None:
        raise ConfigError("", directory, f"there is no {SWEEP_FILE} in {directory}: no sweep has run there")
    if not jobs:
        raise ConfigError("", directory, f"the sweep in {directory} has no job yet")
    before = sweep.direction if metric in (None, sweep.metric) else None
    sweep.metric = metric or sweep.metric
    found = {job.id: metric_values(directory / job.id, sweep.metric) for job in jobs}
    # An older version allowed the direction of a sweep to contradict its metric: the metric decides.
    if direction is not None or better_end(sweep.metric) is not None or (before is None and any(found.values())):
        sweep.direction = checked_direction(sweep.metric, direction, "--direction")
    for job in jobs:
        if job.status == "running":
            at_work = _is_at_work(directory, job.id)
            if at_work is None:
                job.message = "running, as far as can be told"
            elif not at_work:
                job.status, job.message = "stopped", "its sweep was killed"
        job.metric = judged(found[job.id], sweep.value, sweep.direction)
    return sweep, jobs


def _is_at_work(directory: Path, name: str) -> bool | None:
    """Return whether a process is running a job; None if that is unknown."""
    try:
        return is_held(directory / LOCKS / name)
    except OSError:  # another user's sweep: trust its record
        return None
