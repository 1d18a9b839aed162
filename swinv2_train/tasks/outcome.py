"""Combination of the ranks' evaluation results: sums added up, records gathered, metrics on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swinv2_train.launch.failures import on_main
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.records import collect
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.task import Task


@dataclass(frozen=True)
class Outcome:
    """Result of an evaluation over all ranks."""

    metrics: dict[str, float]
    found: Measured
    """The sums on every rank; the records only on the main rank, in the order of positions."""


def combine(task: Task, own: Measured, ranks: Ranks) -> Outcome:
    """Return the outcome of an evaluation. A collective.

    Args:
        own: results of this rank. Each position is measured by exactly one rank.

    Raises:
        ConfigError, DataError, RunError: on the main rank if the task cannot compute its metrics; the others end too.
    """
    found = Measured(ranks.sum_all(own.sums) if own.sums else {}, dict(collect(own.records, ranks)))
    metrics = ranks.broadcast(on_main(ranks, lambda: _with_counts(task.metrics(found))))
    return Outcome(metrics, found)


def _with_counts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics with the number of samples as an integer; it was summed as a float."""
    counts = {key: int(metrics[key]) for key in ("samples",) if key in metrics and float(metrics[key]).is_integer()}
    return {**metrics, **counts}
