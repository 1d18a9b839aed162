"""Metric of a job: read from its `metrics.jsonl`, reduced to one value, and compared with other jobs while it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from swinv2_train.config.sweep import SweepConfig
from swinv2_train.reading import UnreadableError, finite_number, is_count, parse_json
from swinv2_train.sweep.job import Job, read_jobs

METRICS_FILE = "metrics.jsonl"


class MetricReader:
    """Reads a metric from a growing file; every `read` processes only new lines.

    A run that goes back to a checkpoint replaces its file by a shorter one; then it is read again.
    """

    def __init__(self, run_dir: Path, metric: str) -> None:
        self._path, self._metric = run_dir / METRICS_FILE, metric
        self._offset, self._inode = 0, 0
        self.values: dict[int, float] = {}
        """Finite values by step, in the order of the file."""

    def read(self) -> bool:
        """Process new lines; return whether they contained a value."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._offset, self._inode, self.values = 0, status.st_ino, {}
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return False
        whole = data.rfind(b"\n") + 1  # wait until the last line is complete
        self._offset += whole
        new = [pair for line in data[:whole].splitlines() if (pair := self._value_of(line))]
        self.values.update(new)
        return bool(new)

    def _value_of(self, line: bytes) -> tuple[int, float] | None:
        if self._metric.encode() not in line:
            return None
        record = _object_of(line)
        step, value = record.get("step"), finite_number(record.get(self._metric))
        return (step, value) if value is not None and is_count(step) else None


def metric_values(run_dir: Path, metric: str) -> dict[int, float]:
    """Return the finite values of a metric by step; empty if there are none."""
    reader = MetricReader(run_dir, metric)
    reader.read()
    return reader.values


def metric_names(run_dir: Path) -> list[str]:
    """Return the names of all numbers in a run's metrics."""
    names: set[str] = set()
    try:
        with (run_dir / METRICS_FILE).open("rb") as file:
            for line in file:
                names.update(_object_of(line))
    except OSError:
        pass
    return sorted(names - {"step"})


def _object_of(line: bytes) -> dict[str, Any]:
    """Return the object of a line; empty if it is damaged."""
    try:
        record = parse_json(line)
    except UnreadableError:
        return {}
    return record if isinstance(record, dict) else {}


def judged(values: dict[int, float], which: str, direction: str) -> float | None:
    """Return the value of a job that counts: the `last`, or the `best`; None without values."""
    if not values:
        return None
    if which == "last":
        return values[max(values)]
    return (max if direction == "maximize" else min)(values.values())


def missing_metric(metric: str, names: Sequence[str]) -> str:
    """Return the message about a metric that the job has not written."""
    evaluated = [name for name in names if name.startswith("eval/")] or list(names)
    known = f"only {', '.join(evaluated)}" if evaluated else "and no other"
    return f"sweep.metric={metric}: the job has no such metric, {known}"


class Pruner:
    """Detects a job that has fallen behind the median of the others."""

    def __init__(self, job: Job, directory: Path, settings: SweepConfig) -> None:
        self._job, self._directory, self._settings = job, directory, settings
        self._own = MetricReader(directory / job.id, settings.metric)
        self._others: dict[str, MetricReader] = {}
        self._own.read()
        self._seen = set(self._own.values)
        self.reason = ""
        """Reason for which it was pruned."""

    def falls_behind(self) -> bool:
        """Return whether a value added since the last call is worse than the median of the others at its step."""
        if not self._own.read():
            return False
        new = [step for step in self._own.values if step not in self._seen]
        self._seen.update(new)
        return any(self._is_behind(step) for step in new if step >= self._settings.prune_after_steps)

    def _is_behind(self, step: int) -> bool:
        others = self._values_at(step)
        if len(others) < self._settings.prune_min_jobs:
            return False
        middle, value = median(others), self._own.values[step]
        if not (value < middle if self._settings.direction == "maximize" else value > middle):
            return False
        self.reason = f"{self._settings.metric} {value:.4g} at step {step}; the median of {len(others)} is {middle:.4g}"
        return True

    def _values_at(self, step: int) -> list[float]:
        for record in read_jobs(self._directory):
            if record.family == self._job.family and record.id != self._job.id:
                run_dir = self._directory / record.id
                self._others.setdefault(record.id, MetricReader(run_dir, self._settings.metric))
        for reader in self._others.values():
            reader.read()
        return [reader.values[step] for reader in self._others.values() if step in reader.values]
