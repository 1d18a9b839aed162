"""Text output of a sweep: its jobs and their results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from swinv2_train.sweep.job import DONE, JobRecord, SweepRecord


def number(value: float | None) -> str:
    """Return a metric for a table."""
    return "" if value is None else f"{value:.5g}"


def jobs_text(records: Sequence[JobRecord], metric: str) -> str:
    """Return the jobs as a table: id, status, metric, tries, and error."""
    rows = [["job", "status", metric, "tries", ""]]
    rows += [[r.id, r.status, number(r.metric), str(r.tries or ""), r.message] for r in records]
    return table(rows)


def counts_text(records: Iterable[JobRecord]) -> str:
    """Return the number of jobs by status."""
    counts = Counter(record.status for record in records)
    order = (*DONE, *sorted(status for status in counts if status not in DONE))
    return ", ".join(f"{counts[status]} {status}" for status in order if counts[status]) or "no jobs"


def as_json(directory: Path, sweep: SweepRecord, records: Sequence[JobRecord]) -> str:
    """Return the jobs for scripts."""
    values = {"dir": str(directory), **asdict(sweep), "jobs": [asdict(record) for record in records]}
    return json.dumps(values, indent=1)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
