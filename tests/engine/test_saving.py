"""Saves of a run: averaged weights, the best checkpoints, in the background or not, and on a signal."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.validate import validate
from swinv2_train.exit_codes import FINISHED, STOPPED, WRONG_USE
from swinv2_train.tasks.simmim import SimMIM
from tests.checkpoint.weights import load_weights
from tests.runs import comparable, metrics, run_here, tiny_run

SHORT = (
    "optim.schedule=constant", "optim.warmup_steps=0", "checkpoint.every_steps=2", "eval.every_steps=2",
    "eval.at_start=false", "eval.figure_every_steps=0", "data.num_workers=0",
)  # fmt: skip


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_average_is_saved_resumed_and_evaluated(shards: Path, tmp_path: Path, precision: str) -> None:
    options = (*SHORT, "optim.ema_decay=0.5", f"engine.precision={precision}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_here(tiny_run(shards, whole, *options, "optim.steps=4")) == FINISHED
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000004")
    assert run_here(tiny_run(shards, parts, *options, "optim.steps=4")) == FINISHED
    assert "step-00000002" in (parts / "log.txt").read_text().partition("resuming from")[2]
    assert comparable(parts) == comparable(whole)
    rows = [row for row in metrics(whole) if "eval/loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["eval/ema_loss"] not in (row["eval/loss"], None) for row in rows)
    last = [run / "checkpoints" / "step-00000004" for run in (whole, parts)]
    assert same(*(load_weights(path, ema=True) for path in last))
    assert not same(load_weights(last[0]), load_weights(last[0], ema=True))

    assert run_here(tiny_run(shards, tmp_path / "none", *options, "optim.steps=4", "optim.ema_decay=0")) == FINISHED
    assert same(load_weights(last[0]), load_weights(tmp_path / "none" / "checkpoints" / "step-00000004"))


@pytest.mark.slow
def test_an_average_can_be_begun_later(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_here(tiny_run(shards, run, *SHORT, "optim.steps=2")) == FINISHED
    assert run_here(tiny_run(shards, run, *SHORT, "optim.steps=3", "optim.ema_decay=0.5")) == FINISHED
    before, after = (load_weights(run / "checkpoints" / f"step-0000000{step}") for step in (2, 3))
    average = load_weights(run / "checkpoints" / "step-00000003", ema=True)
    decay = (1 + 2) / (10 + 2)  # the third step's, which is below 0.5
    for name, value in average.items():
        torch.testing.assert_close(value, torch.lerp(before[name], after[name], 1 - decay), rtol=0, atol=0)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.9, 0.3, 0.8, 0.7, 0.6])
    monkeypatch.setattr(SimMIM, "metrics", lambda self, sums: {"loss": next(values)})
    options = (*SHORT, "optim.steps=10", "checkpoint.keep_last=1", "checkpoint.keep_best=1")
    assert run_here(tiny_run(shards, tmp_path / "run", *options)) == FINISHED
    kept = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["step-00000010", "step-00000004"]
    assert [read_manifest(path).metrics for path in kept] == [{"eval/loss": 0.6}, {"eval/loss": 0.3}]


def test_a_best_that_cannot_be_told_is_refused(shards: Path, tmp_path: Path, capsys: Any) -> None:
    command = tiny_run(shards, tmp_path / "run", *SHORT, "checkpoint.keep_best=1", "eval.every_steps=3")
    assert run_here(command) == WRONG_USE
    assert "make checkpoint.every_steps=2 a multiple of eval.every_steps=3" in capsys.readouterr().err


@pytest.mark.slow
def test_saving_in_the_foreground_is_the_same_run(shards: Path, tmp_path: Path, finished_run: Path) -> None:
    assert run_here(tiny_run(shards, tmp_path / "run", "checkpoint.background=false")) == FINISHED
    assert comparable(tmp_path / "run") == comparable(finished_run)
    last = [run / "checkpoints" / "step-00000008" for run in (tmp_path / "run", finished_run)]
    assert same(*(load_weights(path) for path in last))


@pytest.mark.slow
def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    shards: Path, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is saved, the evaluation is interrupted, and it runs after the resume."""
    real, batches = SimMIM.evaluate, []

    def watched(self: SimMIM, model: torch.nn.Module, held_out: Any) -> dict[str, float]:
        def each() -> Any:
            for batch in held_out:
                batches.append(len(batch["image"]))
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return real(self, model, each())

    command = tiny_run(shards, tmp_path / "run", "engine.micro_batch=2", "eval.at_start=false")
    monkeypatch.setattr(SimMIM, "evaluate", watched)
    assert run_here(command) == STOPPED
    assert len(batches) == 1, "of four batches"
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"status": "stopped", "step": 4}
    assert not any("eval/loss" in row for row in metrics(tmp_path / "run"))
    monkeypatch.setattr(SimMIM, "evaluate", real)
    assert run_here(command) == FINISHED
    assert [row["step"] for row in metrics(tmp_path / "run") if "eval/loss" in row] == [4, 8]


@pytest.mark.slow
def test_an_interrupted_last_evaluation_runs_on_resume(
    shards: Path, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = SimMIM.evaluate, []

    def watched(self: SimMIM, model: torch.nn.Module, held_out: Any) -> dict[str, float]:
        calls.append(None)
        if len(calls) == 3:  # at the start, at step 4, at step 8
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, model, held_out)

    command = tiny_run(shards, tmp_path / "run")
    monkeypatch.setattr(SimMIM, "evaluate", watched)
    assert run_here(command) == STOPPED
    assert run_here(command) == FINISHED
    assert comparable(tmp_path / "run") == comparable(finished_run)
    assert (tmp_path / "run" / "figures" / "simmim-step-00000008.png").is_file()
    assert "eval/loss" in read_manifest(tmp_path / "run" / "checkpoints" / "step-00000008").metrics


@pytest.mark.parametrize(
    ("options", "known"),
    [
        (["+experiment=simmim_demo"], "eval/loss"),
        (["+experiment=classify_demo", "task.multi_label=true"], "eval/loss, eval/mAP, eval/f1"),
    ],
)
def test_a_metric_that_no_evaluation_gives_is_refused_before_the_start(options: list[str], known: str) -> None:
    metric = "checkpoint.best_metric=eval/top1"
    with pytest.raises(ConfigError, match=f"{metric}: no evaluation reports it; use one of {known}"):
        validate(compose([*options, metric, "checkpoint.keep_best=1"]))
