"""The metric of a job is read as the file grows, judged as asked, and compared with the right jobs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swinv2_train.config.sweep import SweepConfig
from swinv2_train.sweep.job import Job, make_job, new_record, write_job
from swinv2_train.sweep.values import MetricReader, Pruner, judged, metric_names, metric_values, missing_metric


def write(run_dir: Path, values: dict[int, float], metric: str = "eval/loss") -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, metric: value}) + "\n" for step, value in values.items())


def test_only_what_is_new_is_read_and_half_a_line_waits(tmp_path: Path) -> None:
    reader = MetricReader(tmp_path, "eval/loss")
    assert not reader.read()
    write(tmp_path, {4: 1.0})
    assert reader.read()
    assert not reader.read()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "eval/l')
        file.flush()
        assert not reader.read()
        file.write('oss": 0.5}\n{"step": 12, "eval/loss": null}\n{"step": 16, "loss": 3}\nnot json "eval/loss"\n')
    assert reader.read()
    assert reader.values == {4: 1.0, 8: 0.5}


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, {4: 1.0, 8: 0.5})
    reader = MetricReader(tmp_path, "eval/loss")
    reader.read()
    (tmp_path / "new").write_text('{"step": 4, "eval/loss": 1.0}\n')
    os.replace(tmp_path / "new", tmp_path / "metrics.jsonl")
    assert reader.read()
    assert reader.values == {4: 1.0}


@pytest.mark.parametrize(
    ("which", "direction", "value"),
    [("last", "minimize", 0.7), ("last", "maximize", 0.7), ("best", "minimize", 0.5), ("best", "maximize", 0.9)],
)
def test_a_job_is_judged_by_its_last_or_best_value(which: str, direction: str, value: float) -> None:
    assert judged({4: 0.9, 8: 0.5, 12: 0.7}, which, direction) == value
    assert judged({}, which, direction) is None


def test_a_metric_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, {4: 1.0})
    write(tmp_path, {4: 1.0}, "loss")
    assert metric_values(tmp_path, "eval/top1") == {}
    assert missing_metric("eval/top1", metric_names(tmp_path)) == (
        "sweep.metric=eval/top1: the job has no such metric, only eval/loss"
    )


def job(rate: float, steps: int = 8) -> Job:
    return make_job([f"optim.steps={steps}", f"optim.lr={rate}"], {"optim.steps"})


def leave(directory: Path, one: Job, values: dict[int, float]) -> None:
    write(directory / one.id, values)
    write_job(directory / one.id, new_record(one))


def test_a_job_falls_behind_when_it_is_worse_than_the_median_at_the_same_step(tmp_path: Path) -> None:
    for rate, value in ((0.1, 1.0), (0.2, 2.0), (0.3, 3.0)):
        leave(tmp_path, job(rate), {4: value, 8: 0.0})
    leave(tmp_path, job(0.4, steps=9), {4: 0.0})  # another family does not count
    own = job(0.5)
    pruner = Pruner(own, tmp_path, SweepConfig(prune="median"))
    assert not pruner.falls_behind()
    write(tmp_path / own.id, {4: 2.0})
    assert not pruner.falls_behind()  # the median itself is not worse
    write(tmp_path / own.id, {5: 9.0})
    assert not pruner.falls_behind()  # nobody else has a value there
    write(tmp_path / own.id, {8: 0.1})
    assert pruner.falls_behind()
    assert pruner.reason == "eval/loss 0.1 at step 8; the median of 3 is 0"


@pytest.mark.parametrize(
    ("settings", "value", "falls"),
    [
        (SweepConfig(prune="median"), 2.5, True),
        (SweepConfig(prune="median", direction="maximize"), 2.5, False),
        (SweepConfig(prune="median", direction="maximize"), 1.5, True),
        (SweepConfig(prune="median", prune_min_jobs=4), 2.5, False),
        (SweepConfig(prune="median", prune_after_steps=5), 2.5, False),
    ],
)
def test_pruning_does_as_it_is_told(tmp_path: Path, settings: SweepConfig, value: float, falls: bool) -> None:
    for rate, other in ((0.1, 1.0), (0.2, 2.0), (0.3, 3.0)):
        leave(tmp_path, job(rate), {4: other})
    pruner = Pruner(job(0.5), tmp_path, settings)
    write(tmp_path / job(0.5).id, {4: value})
    assert pruner.falls_behind() == falls
