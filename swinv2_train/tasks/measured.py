"""Results of an evaluation: sums over samples, and records of single samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Sums = dict[str, float | np.ndarray]
"""Sums of an evaluation over samples, micro-batches, and ranks: numbers and float64 arrays by name.

The names and shapes are the same on every rank.
"""


def add_sums(total: Sums, more: Mapping[str, float | np.ndarray]) -> Sums:
    """Return the sum of both; an empty total is zero."""
    return {name: total[name] + value if name in total else value for name, value in more.items()}


@dataclass
class Measured:
    """Results of an evaluation on a part of the samples."""

    sums: Sums = field(default_factory=dict)
    """Results that can be summed over samples, micro-batches, and ranks."""
    records: dict[int, Any] = field(default_factory=dict)
    """Results that cannot be summed, such as the detections in an image: by position, anything that can be pickled.

    The records of all ranks are gathered on the main rank, in the order of positions.
    """

    def add(self, more: Measured, batch: Mapping[str, Any]) -> None:
        """Add the results of a batch; records of padding and of broken samples are dropped."""
        self.sums = add_sums(self.sums, more.sums)
        if more.records:
            counted = batch["position"][batch["valid"]].tolist()
            self.records |= {position: more.records[position] for position in counted if position in more.records}
