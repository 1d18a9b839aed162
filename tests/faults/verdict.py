"""Comparison of a run with a twin without faults: samples lost and repeated, and differences."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.job import read_record
from tests.runs import comparable, metrics

TOLERANCE = 1e-4
"""Relative, for the losses of a run in fp32 whose number of ranks changed."""


@dataclass
class Verdict:
    """Problems of a run."""

    lost: int = 0
    """Samples that a step should have consumed and did not."""
    repeated: int = 0
    """Samples that a step consumed and should not have."""
    differences: list[str] = field(default_factory=list)
    """Sentences: where the run is not its twin."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.repeated or self.differences)


def consumed(trace: Path) -> dict[int, Counter[int]]:
    """The sample positions of each step, added up over the ranks of the last start that ran it."""
    last: dict[int, tuple[int, dict[int, list[int]]]] = {}
    for record in sorted(trace.glob("start-*-rank-*.jsonl")):
        start, rank = int(record.name.split("-")[1]), int(record.stem.split("-")[3])
        for line in read_record(record):
            if "step" not in line:
                continue
            known, ranks = last.get(line["step"], (-1, {}))
            if start >= known:
                last[line["step"]] = (start, {**(ranks if start == known else {}), rank: line["positions"]})
    return {step: sum((Counter(part) for part in ranks.values()), Counter()) for step, (_, ranks) in last.items()}


def count_samples(trace: Path, steps: Iterable[int], global_batch: int) -> tuple[int, int]:
    """Samples (lost, repeated) by the steps that a run records, step s of which holds [(s - 1) * G, s * G)."""
    record, lost, repeated = consumed(trace), 0, 0
    for step in steps:
        wanted, seen = Counter(range((step - 1) * global_batch, step * global_batch)), record.get(step, Counter())
        lost += (wanted - seen).total()
        repeated += (seen - wanted).total()
    return lost, repeated


def judge(run_dir: Path, trace: Path, twin: Path, *, total_steps: int, global_batch: int, exact: bool) -> Verdict:
    """Compare a finished run with its twin.

    Args:
        exact: bit for bit, weights and moments included; else the losses within `TOLERANCE`.
    """
    lost, repeated = count_samples(trace, range(1, total_steps + 1), global_batch)
    verdict = Verdict(lost, repeated)
    steps = [row["step"] for row in metrics(run_dir) if "loss" in row]
    if steps != list(range(1, total_steps + 1)):
        verdict.differences.append(f"metrics.jsonl holds the steps {steps}")
    compare = _differences if exact else _beyond_tolerance
    verdict.differences += compare(run_dir, twin)
    return verdict


def _differences(run_dir: Path, twin: Path) -> list[str]:
    ours, theirs = comparable(run_dir), comparable(twin)
    found = [f"{mine} is not the twin's {other}" for mine, other in zip(ours, theirs, strict=False) if mine != other]
    if len(ours) != len(theirs):
        found.append(f"{len(ours)} lines of metrics.jsonl are not the twin's {len(theirs)}")
    tensors, others = final_tensors(run_dir), final_tensors(twin)
    found += [f"{name} of the last checkpoint differs" for name in others if tensors.get(name) != others[name]]
    return found


def _beyond_tolerance(run_dir: Path, twin: Path) -> list[str]:
    found = []
    for key in ("loss", "eval/loss"):
        ours, theirs = series(run_dir, key), series(twin, key)
        if ours.keys() != theirs.keys():
            found.append(f"{key} is known at the steps {sorted(ours)}, that of the twin at {sorted(theirs)}")
        for step, value in ours.items():
            if relative_difference(value, theirs.get(step)) > TOLERANCE:
                found.append(f"{key} at step {step} is {value}, that of the twin {theirs.get(step)}")
    return found


def relative_difference(value: float | None, other: float | None) -> float:
    """0 where both are unknown (a loss that is not finite), infinite where one is."""
    if value is None or other is None:
        return 0.0 if value is other else math.inf
    return abs(value - other) / abs(other) if value != other else 0.0


def series(run_dir: Path, key: str) -> dict[int, Any]:
    """A number of a run by step."""
    return {row["step"]: row[key] for row in metrics(run_dir) if key in row}


def final_tensors(run_dir: Path) -> dict[str, str]:
    """Hashes of the tensor files of the newest checkpoint, by path in it."""
    newest = max((run_dir / "checkpoints").glob("step-*"))
    files = sorted(newest.glob("*/*.safetensors"))
    return {str(path.relative_to(newest)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
