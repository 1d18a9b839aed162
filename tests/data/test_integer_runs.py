"""Ascending integers as runs of a constant step: exact, compact, and checked when they are read."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swinv2_train.data.integer_runs import MOST_NUMBERS, IntegerRuns


@given(
    st.lists(st.integers(0, 5000), max_size=60), st.integers(-(2**40), 2**40), st.fractions(0, 50, max_denominator=9)
)
def test_any_ascending_numbers_come_back(steps: list[int], start: int, likely: Fraction) -> None:
    numbers = (start + np.cumsum([0, *steps])).tolist()
    runs = IntegerRuns.of(numbers, [likely])
    assert runs.numbers.tolist() == numbers
    assert len(runs) == len(numbers)
    assert IntegerRuns.from_json(json.loads(json.dumps(runs.to_json()))) == runs


@pytest.mark.parametrize(("rate", "base"), [("30", 1000), ("30000/1001", 1000), ("24000/1001", 1000), ("25", 12800)])
@pytest.mark.parametrize("offset", [0, 21])
def test_a_constant_rate_is_one_run_also_in_milliseconds(rate: str, base: int, offset: int) -> None:
    step = base / Fraction(rate)
    numbers = [offset + (i * step + Fraction(1, 2)).__floor__() for i in range(3000)]  # as FFmpeg rounds
    for likely in ([step], []):
        runs = IntegerRuns.of(numbers, likely)
        assert runs.numbers.tolist() == numbers
        assert len(runs.runs) == 1


def test_few_or_no_numbers_are_runs_too() -> None:
    assert IntegerRuns.of([]).numbers.tolist() == []
    assert IntegerRuns.of([7]).runs == ((1, 7, 0, 1),)
    assert IntegerRuns.of([3, 3, 3]).runs == ((3, 3, 0, 1),)
    # Long runs are found in blocks; a gap ends one.
    numbers = [*range(0, 20000, 2), *range(50000, 50900, 3)]
    assert IntegerRuns.of(numbers).runs == ((10000, 0, 2, 1), (300, 50000, 3, 1))


@pytest.mark.parametrize(
    "content",
    [None, {}, [1], [[1, 2, 3]], [["1", 0, 1, 1]], [[0, 0, 1, 1]], [[2, 0, -1, 1]], [[2, 0, 1, 0]], [[2, 0.5, 1, 1]],
     [[2, 5, 1, 1], [1, 0, 0, 1]], [[MOST_NUMBERS + 1, 0, 1, 1]], [[2, 2**62, 1, 1]], [[2, 0, 2**62, 1]]],
)  # fmt: skip
def test_other_content_gives_none(content: object) -> None:
    assert IntegerRuns.from_json(content) is None
