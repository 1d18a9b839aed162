"""Ascending integers, such as the presentation times of a video, as few runs of a constant step.

A run is (count, offset, numerator, denominator); its i-th number is floor((offset + i * numerator) / denominator). So a
constant frame rate is one run even where a container rounds times to milliseconds, such as 0, 33, 67, 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

Run = tuple[int, int, int, int]
MOST_NUMBERS = 1 << 24
"""Numbers that are read from JSON at most, since a few characters can declare any count: 6 days at 30 per second."""
_LARGEST = 1 << 62
_FIRST_BLOCK = 256
_DENOMINATORS = (3, 30, 120, 1001)


@dataclass(frozen=True)
class IntegerRuns:
    """Ascending integers; equal ones may follow each other."""

    runs: tuple[Run, ...] = ()

    def __len__(self) -> int:
        return sum(run[0] for run in self.runs)

    @classmethod
    def of(cls, values: Sequence[int] | np.ndarray, steps: Iterable[Fraction] = ()) -> IntegerRuns:
        """Return the runs of ascending numbers.

        Args:
            steps: steps that are likely, in addition to integers and simple fractions near the mean step.
        """
        numbers = np.asarray(values, np.int64)
        largest = int(np.abs(numbers).max(initial=0)) + 1
        likely = [
            step
            for step in [*steps, *_mean_steps(numbers)]
            if step > 0 and largest * step.denominator * len(numbers) < _LARGEST
        ]
        runs: list[Run] = []
        start = 0
        while start < len(numbers):
            rest = numbers[start:]
            step = Fraction(int(rest[1] - rest[0])) if len(rest) > 1 else Fraction(0)
            # The first of equally long runs, so that a run of whole steps has whole numbers.
            best = max((_longest(rest, each) for each in [step, *likely]), key=lambda run: run[0])
            runs.append(best)
            start += best[0]
        return cls(tuple(runs))

    @cached_property
    def numbers(self) -> np.ndarray:
        """(N,) int64."""
        parts = [(offset + np.arange(count) * step) // base for count, offset, step, base in self.runs]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def to_json(self) -> list[list[int]]:
        """Return plain values; `from_json` restores the same runs."""
        return [list(run) for run in self.runs]

    @classmethod
    def from_json(cls, content: Any) -> IntegerRuns | None:
        """Return the runs that `to_json` wrote; None for anything else."""
        if not isinstance(content, list):
            return None
        runs = []
        for run in content:
            match run:
                case [int(count), int(offset), int(step), int(base)] if count > 0 and step >= 0 and base > 0:
                    if count * step + abs(offset) >= _LARGEST or base >= _LARGEST:
                        return None
                    runs.append((count, offset, step, base))
                case _:
                    return None
        found = cls(tuple(runs))
        if len(found) > MOST_NUMBERS or (np.diff(found.numbers) < 0).any():
            return None
        return found


def _mean_steps(numbers: np.ndarray) -> list[Fraction]:
    if len(numbers) < 3:
        return []
    mean = Fraction(int(numbers[-1] - numbers[0]), len(numbers) - 1)
    return [mean.limit_denominator(largest) for largest in _DENOMINATORS]


def _longest(numbers: np.ndarray, step: Fraction) -> Run:
    """Return the longest run with a step from the first number on."""
    size, base = _FIRST_BLOCK, step.denominator
    while True:
        block = numbers[:size]
        # An offset makes number i if it is in [low[i], low[i] + base); the intervals must overlap.
        low = block * base - np.arange(len(block)) * step.numerator
        lowest, highest = np.maximum.accumulate(low), np.minimum.accumulate(low) + base - 1
        fitting = lowest <= highest
        if not fitting.all():
            count = int(fitting.argmin())
        elif size >= len(numbers):
            count = len(block)
        else:
            size *= 4
            continue
        return (count, int(lowest[count - 1]), step.numerator, base)
