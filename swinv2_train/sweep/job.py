"""Jobs of a sweep: their identity, and their records in `job.json` and `sweep.json`.

A job is identified by its overrides, in any order. Its run directory is the record of its training, as usual; the
`job.json` there contains what the sweep has observed.
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
"""Prefixes of keys that change how a job is run, but not its identity, unless they are swept over."""
SEED = "seed"
"""The key whose values are repetitions, not alternatives to compare."""
_LONGEST = 80
_DIGITS = 8
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    id: str
    """Readable swept values, and a hash of all overrides: lr_0.001__seed_1-5f0c9a1e.

    It is a file name that neither the shell nor Hydra has to have quoted.
    """
    overrides: tuple[str, ...]
    """Overrides in the order in which the run applies them."""
    swept: dict[str, str]
    """Values that distinguish it from the other jobs, by key."""
    shared: tuple[str, ...]
    """Overrides that it shares with the other jobs and that have an effect, sorted."""
    family: str
    """Hash of these: only jobs with the same hash are comparable."""


def make_job(overrides: Sequence[str], fixed: Collection[str], directory: Path | None = None) -> Job:
    """Return the job of some overrides.

    Args:
        fixed: keys that all jobs of the sweep share.
        directory: that of the sweep, in which an earlier version may have begun the job under another name.
    """
    items = in_order(overrides)
    swept = [item for item in items if key_of(item) not in fixed]
    shared = [item for item in items if item not in swept and not key_of(item).startswith(WITHOUT_EFFECT)]
    values = {key_of(item): redact(_plain(item.partition("=")[2])) for item in sorted(swept, key=_place)}
    digest = _digest([*shared, *swept])
    name = _begun(directory, digest) or f"{_readable(values)}-{digest}"
    return Job(name, tuple(items), values, tuple(_normal(shared)), _digest(shared))


def _begun(directory: Path | None, digest: str) -> str | None:
    """Return the id under which a job with this hash has begun; None if it has not."""
    found = (
        sorted(path.name for path in directory.glob(f"*-{digest}") if path.is_dir()) if directory is not None else []
    )
    return found[0] if found else None


def _place(item: str) -> tuple[bool, str]:
    return key_of(item) == SEED, key_of(item)  # sorts repetitions of the same values together


def _digest(items: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(_normal(items)).encode()).hexdigest()[:_DIGITS]


def _normal(items: Sequence[str]) -> list[str]:
    """Return overrides in a canonical order and spelling."""
    return sorted(f"{item.partition('=')[0]}={_plain(item.partition('=')[2])}" for item in items)


def _plain(value: str) -> str:
    """Return a value without quotes; a number with a point or an exponent in Python's notation."""
    text = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) and not re.fullmatch(r"[+-]?\d+", text):
        return repr(float(text))
    return text


def _readable(values: dict[str, str]) -> str:
    leaves = Counter(key.rsplit(".", 1)[-1] for key in values)
    parts = []
    for key, value in values.items():
        leaf = key.rsplit(".", 1)[-1]
        number = f"{float(value):.6g}" if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", value) else value
        sign = "-" if re.match(r"-(\d|inf)", number) else ""
        safe = sign + re.sub(r"[^A-Za-z0-9._+-]+", "-", number).strip("-.")
        parts.append(f"{leaf if leaves[leaf] == 1 else key.replace('/', '.')}_{safe}")
    return "__".join(parts)[:_LONGEST].rstrip("_.") or "job"


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
    """Hash of its jobs' family; see `Job`. Another family in the same directory would be mixed up with it."""
    shared: list[str]
    """Values that the hash covers."""
    command: list[str] = field(default_factory=list)


def new_record(job: Job) -> JobRecord:
    """Record of a job before it begins."""
    return JobRecord(job.id, list(job.overrides), dict(job.swept), job.family)


def read_job(directory: Path) -> JobRecord | None:
    """Return the record of the job in a directory; None if it is missing or unusable.

    The run's own directory records what is done, so a damaged file loses only the number of tries and the time.
    """
    return _read(directory / JOB_FILE, JobRecord)


def read_jobs(directory: Path) -> list[JobRecord]:
    """Return all jobs of a sweep, by id, without those whose file is damaged."""
    found = (read_job(path.parent) for path in sorted(directory.glob(f"*/{JOB_FILE}")))
    return [record for record in found if record is not None]


def write_job(directory: Path, record: JobRecord) -> None:
    """Replace the record of a job."""
    write_text(directory / JOB_FILE, json.dumps(redacted(asdict(record)), indent=1) + "\n")


def read_sweep(directory: Path) -> SweepRecord | None:
    """Return the record of a sweep; None if it is missing or unusable."""
    return _read(directory / SWEEP_FILE, SweepRecord)


def write_sweep(directory: Path, record: SweepRecord) -> None:
    """Replace the record of a sweep."""
    write_text(directory / SWEEP_FILE, json.dumps(redacted(asdict(record)), indent=1) + "\n")


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        return from_object(kind, read_json(path))
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        print(f"swinv2-train: ignoring {path}, which is damaged ({error})", file=sys.stderr, flush=True)
        return None
