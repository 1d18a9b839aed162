"""A part of `scripts/bench/fuzz_files.py`: no traceback, and nothing changes without a word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.fuzz import Outcome
from tests.faults.fuzz_runs import run_case
from tests.faults.fuzz_shards import index_case, tar_case


def good(outcomes: dict[int, Outcome]) -> Counter[str]:
    """The counts of the outcomes, after a check that all of them are good."""
    bad = {seed: outcome for seed, outcome in outcomes.items() if outcome.outcome in ("silent", "traceback")}
    assert bad == {}
    return Counter(outcome.outcome for outcome in outcomes.values())


def folder(tmp_path: Path, seed: int) -> Path:
    (tmp_path / str(seed)).mkdir()
    return tmp_path / str(seed)


@pytest.mark.slow
def test_damaged_tars(tmp_path: Path) -> None:
    counts = good({seed: tar_case(seed, folder(tmp_path, seed)) for seed in range(80)})
    assert counts["reported"] > 40
    assert counts["same"] > 5


def test_damaged_indexes_manifests_and_copies(tmp_path: Path) -> None:
    counts = good({seed: index_case(seed, folder(tmp_path, seed)) for seed in range(30)})
    assert counts["same"] > 15


@pytest.mark.slow
def test_damaged_run_files(finished_run: Path, tmp_path: Path) -> None:
    counts = good({seed: run_case(seed, folder(tmp_path, seed), finished_run) for seed in range(15)})
    assert counts["same"] >= 5
    assert counts["reported"] >= 2
