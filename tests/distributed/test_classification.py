"""Supervised training on two ranks with settings that make samples depend on each other: mixing and class weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.exit_codes import FINISHED
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import losses, make_labelled_data, metrics, run_here, tiny_classification

pytestmark = pytest.mark.distributed


def test_two_ranks_follow_one(nursery: Nursery, tmp_path: Path) -> None:
    shards = make_labelled_data(tmp_path / "shards")
    options = ("task.class_weights=[1,3,0.5]", "task.mix_prob=0.75", "engine.micro_batch=3")
    one, two = (tiny_classification(shards, tmp_path / name, *options) for name in ("one", "two"))
    assert run_here(one) == FINISHED
    run = FaultyRun(tmp_path / "two", two, nursery)
    assert run.go(2) == FINISHED, run.jobs[0].output
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    scores = [[row["eval/top1"] for row in metrics(tmp_path / run) if "eval/top1" in row] for run in ("one", "two")]
    assert len(scores[0]) == 2
    assert scores[0] == scores[1]
