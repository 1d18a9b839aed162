"""Results of the ranks are the same for any number of them: padding and broken samples never count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.outcome import combine
from tests.engine.threads import on_ranks


class Spread:
    """Stands in for a task: the sum and the list of the values of the samples."""

    def metrics(self, found: Measured) -> dict[str, float]:
        values = list(found.records.values())
        assert list(found.records) == sorted(found.records)
        return {"median": float(np.median(values)), "mean": found.sums["total"] / found.sums["samples"]}


def measured(rank: int, world_size: int, micro_batch: int, broken: int = 3, total: int = 11) -> Measured:
    """As the evaluation loader deals 11 samples, one of them broken, with padding at the end."""
    found, step = Measured(), world_size * micro_batch
    for first in range(0, total, step):
        positions = torch.arange(micro_batch) + first + rank * micro_batch
        valid = (positions < total) & (positions != broken)
        values = (positions.double() ** 2 * valid).tolist()
        sums = {"total": sum(values), "samples": float(valid.sum())}
        records = dict(zip(positions.tolist(), (positions.double() ** 2).tolist(), strict=True))
        found.add(Measured(sums, records), {"position": positions, "valid": valid})
    return found


def test_metrics_do_not_depend_on_the_ranks() -> None:
    expected = {"median": 36.0, "mean": float(np.mean([n**2 for n in range(11) if n != 3]))}
    expected["median"] = float(np.median([n**2 for n in range(11) if n != 3]))
    for world_size, micro_batch in ((1, 4), (2, 3), (3, 1), (3, 4)):

        def work(ranks: Any, world_size: int = world_size, micro_batch: int = micro_batch) -> Any:
            return combine(Spread(), measured(ranks.rank, world_size, micro_batch), ranks)  # type: ignore[arg-type]

        outcomes = on_ranks(world_size, work)
        assert all(outcome.metrics == expected for outcome in outcomes)
        assert [len(outcome.found.records) for outcome in outcomes] == [10] + [0] * (world_size - 1)


def test_sums_alone_and_records_alone_are_enough() -> None:
    task = SimpleNamespace(metrics=lambda found: {"n": float(len(found.records) + found.sums.get("samples", 0))})
    for own, count in ((Measured({"samples": 2.0}), 4.0), (Measured({}, {}), 0.0)):
        assert [outcome.metrics["n"] for outcome in on_ranks(2, lambda ranks, own=own: combine(task, own, ranks))] == [
            count,
            count,
        ]
