"""The jobs of a sweep: what makes two of them the same, and what is kept of each in `job.json` and `sweep.json`.

A job is its overrides, in whatever order they were given. Its run directory is the record of its training, as usual;
`job.json` in it says what the sweep has seen of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from swinv2_train.config.overrides import in_order, key_of
from swinv2_train.launch.status import write_text
from swinv2_train.reading import UnreadableError, from_object, read_json
from swinv2_train.redact import redact, redacted

JOB_FILE, SWEEP_FILE = "job.json", "sweep.json"
DONE = ("finished", "pruned")
WITHOUT_EFFECT = ("sweep.", "launch.", "resume.allow")
"""Beginnings of keys that change how a job is run, and not what it is; unless they are what is swept over."""
SEED = "seed"
"""The key whose values are repetitions, and not something to compare."""
_LONGEST = 80
_DIGITS = 8
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    id: str
    """Readable values of what is swept over, and a hash of all overrides; a file name."""
    overrides: tuple[str, ...]
    """In the order in which the run takes them."""
    swept: dict[str, str]
    """The values that tell it from the other jobs, by key."""
    shared: tuple[str, ...]
    """The overrides that it shares with the other jobs and that have an effect, sorted."""
    family: str
    """A hash of these: jobs with the same are to be compared with each other."""


def make_job(overrides: Sequence[str], fixed: Collection[str]) -> Job:
    """The job of some overrides.

    Args:
        fixed: the keys that all jobs of the sweep share.
    """
    items = in_order(overrides)
    swept = [item for item in items if key_of(item) not in fixed]
    shared = [item for item in items if item not in swept and not key_of(item).startswith(WITHOUT_EFFECT)]
    values = {key_of(item): redact(_plain(item.partition("=")[2])) for item in sorted(swept, key=_place)}
    name = f"{_readable(values)}-{_digest([*shared, *swept])}"
    return Job(name, tuple(items), values, tuple(_normal(shared)), _digest(shared))


def _place(item: str) -> tuple[bool, str]:
    return key_of(item) == SEED, key_of(item)  # repetitions of the same stand together when sorted


def _digest(items: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(_normal(items)).encode()).hexdigest()[:_DIGITS]


def _normal(items: Sequence[str]) -> list[str]:
    """Overrides in an order and a spelling that say nothing."""
    return sorted(f"{item.partition('=')[0]}={_plain(item.partition('=')[2])}" for item in items)


def _plain(value: str) -> str:
    """A value without quotes; a number with a point or an exponent as Python writes it."""
    text = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) and not re.fullmatch(r"[+-]?\d+", text):
        return repr(float(text))
    return text


def _readable(values: dict[str, str]) -> str:
    leaves = Counter(key.rsplit(".", 1)[-1] for key in values)
    parts = []
    for key, value in values.items():
        leaf = key.rsplit(".", 1)[-1]
        number = f"{float(value):.6g}" if re.fullmatch(r"[+-]?\d[\d.]*(e[+-]?\d+)?", value) else value
        safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", number).strip("-.")
        parts.append(f"{leaf if leaves[leaf] == 1 else key.replace('/', '.')}={safe}")
    return ",".join(parts)[:_LONGEST].rstrip(",.") or "job"


@dataclass
class JobRecord:
    """`job.json`."""

    id: str
    overrides: list[str]
    swept: dict[str, str]
    family: str
    status: str = "to do"
    """to do, running, finished, stopped, pruned, failed, or refused (its config is wrong)."""
    tries: int = 0
    """Number of starts."""
    metric: float | None = None
    seconds: float = 0.0
    """Seconds that it has run, over all its starts."""
    message: str = ""
    """Its error message."""


@dataclass
class SweepRecord:
    """`sweep.json`."""

    name: str
    metric: str
    direction: str
    value: str
    family: str
    """Of its jobs; see `Job`. Another one in the same directory would be mixed up with it."""
    shared: list[str]
    """Values that the family is the hash of."""
    command: list[str] = field(default_factory=list)


def new_record(job: Job) -> JobRecord:
    """Record of a job before it begins."""
    return JobRecord(job.id, list(job.overrides), dict(job.swept), job.family)


def read_job(directory: Path) -> JobRecord | None:
    """Return what is kept of the job in a directory; None if nothing is, or nothing that can be used.

    The run's own directory says what is done, so that a damaged file costs only the count of tries and the time.
    """
    return _read(directory / JOB_FILE, JobRecord)


def read_jobs(directory: Path) -> list[JobRecord]:
    """Return all jobs of a sweep, by id, without those whose file is damaged."""
    found = (read_job(path.parent) for path in sorted(directory.glob(f"*/{JOB_FILE}")))
    return [record for record in found if record is not None]


def write_job(directory: Path, record: JobRecord) -> None:
    """Replace what is kept of a job."""
    write_text(directory / JOB_FILE, json.dumps(redacted(asdict(record)), indent=1) + "\n")


def read_sweep(directory: Path) -> SweepRecord | None:
    """Return what is kept of a sweep; None if nothing is, or nothing that can be used."""
    return _read(directory / SWEEP_FILE, SweepRecord)


def write_sweep(directory: Path, record: SweepRecord) -> None:
    """Replace what is kept of a sweep."""
    write_text(directory / SWEEP_FILE, json.dumps(redacted(asdict(record)), indent=1) + "\n")


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        return from_object(kind, read_json(path))
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        print(f"swinv2-train: ignoring {path}, which is damaged ({error})", file=sys.stderr, flush=True)
        return None
