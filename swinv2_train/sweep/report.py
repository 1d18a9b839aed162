"""Report of a sweep: one row for each combination of values, with the spread over seeds; CSV and figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from swinv2_train.config.errors import ConfigError
from swinv2_train.launch.status import write_text
from swinv2_train.sweep.job import SEED, JobRecord, SweepRecord
from swinv2_train.sweep.show import counts_text, number, table
from swinv2_train.sweep.values import metric_names, missing_metric
from swinv2_train.text import counted

CSV_FILE, FIGURES = "report.csv", "figures"


@dataclass(frozen=True)
class Row:
    """One combination of swept values."""

    values: dict[str, str]
    """Swept values, without the seed."""
    mean: float | None
    spread: float | None
    """Sample standard deviation over the seeds; None with fewer than two."""
    n: int
    """Number of jobs with a value."""
    jobs: list[JobRecord]


@dataclass(frozen=True)
class Report:
    """The entire sweep, best combination first."""

    sweep: SweepRecord
    keys: list[str]
    """Swept keys, without the seed."""
    rows: list[Row]
    jobs: list[JobRecord]
    others: int
    """Number of jobs in the directory with another experiment or other fixed values; they are excluded."""


def make_report(sweep: SweepRecord, jobs: Sequence[JobRecord], directory: Path) -> Report:
    """Group the jobs of the sweep's family by their values.

    Raises:
        ConfigError: if there is none, or none has the metric.
    """
    found, jobs = jobs, [job for job in jobs if job.family == sweep.family]
    if not jobs:
        raise ConfigError("", directory, f"the sweep in {directory} has no job yet")
    if all(job.metric is None for job in jobs):
        names = sorted({name for job in jobs for name in metric_names(directory / job.id)})
        raise ConfigError("", sweep.metric, missing_metric(sweep.metric, names).replace("the job has", "the jobs have"))
    groups: dict[tuple[tuple[str, str], ...], list[JobRecord]] = {}
    for job in jobs:
        values = tuple((key, value) for key, value in job.swept.items() if key != SEED)
        groups.setdefault(values, []).append(job)
    rows = [_row(dict(values), members) for values, members in groups.items()]
    sign = -1 if sweep.direction == "maximize" else 1
    rows.sort(key=lambda row: (row.mean is None, sign * (row.mean or 0.0), sorted(row.values.items())))
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    return Report(sweep, keys, rows, jobs, len(found) - len(jobs))


def _row(values: dict[str, str], jobs: list[JobRecord]) -> Row:
    found = [job.metric for job in jobs if job.metric is not None]
    spread = stdev(found) if len(found) > 1 else None
    return Row(values, mean(found) if found else None, spread, len(found), jobs)


def report_text(report: Report) -> str:
    """Return the combinations as a table."""
    sweep = report.sweep
    rows = [[*report.keys, f"{sweep.metric}", "spread", "n", "jobs"]]
    for row in report.rows:
        values = [row.values.get(key, "") for key in report.keys]
        rows.append([*values, number(row.mean), number(row.spread), str(row.n), counts_text(row.jobs)])
    heading = f"sweep {sweep.name}: {sweep.value} {sweep.metric}, {sweep.direction}; mean and sample standard deviation"
    others = f"\n{report.others} more job directories have other fixed values" if report.others else ""
    return f"{heading}\n{table(rows)}\n{counted(len(report.jobs), 'job')}: {counts_text(report.jobs)}{others}"


def as_json(directory: Path, report: Report, written: Sequence[Path]) -> str:
    """Return the report for scripts."""
    rows = [{**asdict(row), "jobs": [job.id for job in row.jobs]} for row in report.rows]
    files = [str(path) for path in written]
    values = {"dir": str(directory), **asdict(report.sweep), "rows": rows, "others": report.others, "files": files}
    return json.dumps(values, indent=1)


def write_csv(directory: Path, report: Report) -> Path:
    """Write `report.csv`, one row per job; return its path.

    Raises:
        OSError: if it cannot be written.
    """
    keys = sorted({key for job in report.jobs for key in job.swept})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", *keys, "status", report.sweep.metric, "tries", "seconds", "message"])
    for job in report.jobs:
        values = [job.swept.get(key, "") for key in keys]
        metric = "" if job.metric is None else repr(job.metric)
        writer.writerow([job.id, *values, job.status, metric, job.tries, round(job.seconds, 1), job.message])
    path = directory / CSV_FILE
    write_text(path, stream.getvalue())
    return path


def write_figures(directory: Path, report: Report) -> list[Path]:
    """Plot the metric against each swept value; return the paths of the figures.

    Raises:
        OSError: if they cannot be written.
    """
    from swinv2_train.tracking.sweep_charts import sweep_chart

    written = []
    for key in report.keys or ([SEED] if any(SEED in job.swept for job in report.jobs) else []):
        points = [
            (value, job.metric) for job in report.jobs if job.metric is not None and (value := job.swept.get(key))
        ]
        if not points:
            continue
        folder = directory / FIGURES
        folder.mkdir(exist_ok=True)
        name = f"{_safe(report.sweep.metric)}-{_safe(key)}.png"
        chart = sweep_chart(points, x_label=key, y_label=report.sweep.metric)
        written.extend(chart.save(folder / name))
    return written


def _safe(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._" else "_" for sign in name)
