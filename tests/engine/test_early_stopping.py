"""A run ends once its metric no longer improves, and counts on over a resume."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.stopping import EarlyStoppingConfig
from swinv2_train.config.validate import validate
from swinv2_train.engine.early_stopping import observe, stopping_reason
from swinv2_train.engine.state import TrainState
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.tasks.simmim import SimMIM
from tests.runs import comparable, metrics, run_here, tiny_run

NAN = math.nan


@pytest.mark.parametrize(
    ("metric", "min_delta", "values", "waited"),
    [
        ("eval/loss", 0.0, [3.0, 2.0, 1.0], 0),
        ("eval/loss", 0.0, [3.0, 3.0, 4.0], 2),
        ("eval/loss", 0.0, [3.0, 4.0, 2.0, 2.5], 1),
        ("eval/loss", 0.5, [3.0, 2.75, 2.6, 2.5], 0),
        ("eval/loss", 0.5, [3.0, 2.75, 2.625], 2),
        ("eval/top1", 0.0, [0.5, 0.25, 0.75, 0.5], 1),
        ("eval/probe/knn_top1", 0.0, [0.5, 0.25, 0.125], 2),
        ("eval/loss", 0.0, [NAN, NAN], 2),
        ("eval/loss", 0.0, [NAN, 2.0, NAN], 1),
    ],
)
def test_evaluations_without_an_improvement_are_counted(
    metric: str, min_delta: float, values: list[float], waited: int
) -> None:
    settings = EarlyStoppingConfig(metric, 2, min_delta)
    state = TrainState()
    for value in values:
        state.step += 10
        observe(state, settings, {"eval/samples": 7, metric: value})
        observe(state, settings, {metric: value})  # the same evaluation again, as after a resume
        state = TrainState(**json.loads(json.dumps(state.to_dict())))
    assert state.early_waited == waited
    assert (stopping_reason(state, settings) is not None) == (waited == 2)
    assert stopping_reason(state, EarlyStoppingConfig(metric, 3)) is None
    assert stopping_reason(state, EarlyStoppingConfig("eval/ema_loss", 1)) is None
    assert stopping_reason(state, EarlyStoppingConfig()) is None


def test_another_metric_begins_to_count_from_zero() -> None:
    state = TrainState(step=1)
    for step in range(1, 5):
        state.step = step
        observe(state, EarlyStoppingConfig("eval/loss"), {"eval/loss": 1.0})
    assert state.early_waited == 3
    observe(state, EarlyStoppingConfig("eval/top1"), {"eval/top1": 0.5, "eval/loss": 1.0})
    assert (state.early_metric, state.early_best, state.early_waited) == ("eval/top1", 0.5, 0)


def test_a_state_without_it_is_that_of_earlier_versions() -> None:
    assert not [key for key in TrainState(step=3).to_dict() if key.startswith(("early", "changed"))]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["metric=eval/los"], ["eval.early_stopping.metric=eval/los", "no evaluation reports it", "eval/loss"]),
        (["metric=eval/loss", "patience=0"], ["eval.early_stopping.patience=0", "at least 1"]),
        (["metric=eval/loss", "min_delta=-1"], ["eval.early_stopping.min_delta=-1", "at least 0"]),
        (["metric=eval/probe/knn_top1"], ["eval.early_stopping.metric", "nothing to probe with"]),
        (["metric=eval/loss", "every_steps=0"], ["eval.early_stopping.metric=eval/loss", "evaluates nothing"]),
    ],
)
def test_impossible_settings_are_rejected(overrides: list[str], parts: list[str]) -> None:
    given = [f"eval.{'' if item.startswith('every') else 'early_stopping.'}{item}" for item in overrides]
    with pytest.raises(ConfigError) as caught:
        validate(compose(["+experiment=simmim_demo", "data.eval_shards=x", *given]))
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.slow
def test_a_run_ends_early_and_goes_on_with_more_patience(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    fixed = ["data.num_workers=0", "eval.every_steps=2", "eval.early_stopping.metric=eval/loss", "eval.at_start=false"]
    fixed += ["eval.early_stopping.min_delta=100", "checkpoint.every_steps=0", "tracking.log_every_steps=3"]
    early = tiny_run(shards, run, *fixed, "eval.early_stopping.patience=2")
    assert run_here(early) == FINISHED  # the first of three evaluations is the best
    output = capsys.readouterr().out
    assert "the run ends early, after step 6 of 8: eval/loss has not improved by 100 or more since step 2" in output
    assert json.loads((run / "status.json").read_text()) == {"status": "finished", "step": 6}
    assert [row["step"] for row in metrics(run) if "lr" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in metrics(run) if "eval/loss" in row] == [2, 4, 6]
    assert [path.name for path in (run / "figures").iterdir()] == ["simmim-step-00000006.png"]
    before = (run / "metrics.jsonl").read_bytes()

    assert run_here(early) == FINISHED
    output = capsys.readouterr().out
    assert "is finished: step 6 of 8, because eval/loss has not improved" in output
    assert (run / "metrics.jsonl").read_bytes() == before

    # If the evaluation that ends the run is interrupted, its repetition ends the run, with everything else that is due.
    real, calls = SimMIM.evaluate, []

    def watched(self: SimMIM, model: torch.nn.Module, held_out: Any) -> dict[str, float]:
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, model, held_out)

    monkeypatch.setattr(SimMIM, "evaluate", watched)
    again = tiny_run(shards, tmp_path / "again", *fixed, "eval.early_stopping.patience=1")
    assert run_here(again) == STOPPED
    assert run_here(again) == FINISHED
    assert "the run ends early, after step 4 of 8" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "again" / "figures").iterdir()] == ["simmim-step-00000004.png"]

    more = tiny_run(shards, run, *fixed, "eval.early_stopping.patience=3")
    assert run_here(more) == FINISHED
    whole = tiny_run(shards, tmp_path / "whole", *fixed, "eval.early_stopping.metric=null")
    assert run_here(whole) == FINISHED
    assert comparable(run) == comparable(tmp_path / "whole"), "the count went on, and the weights are the same"
    assert "ends early" not in capsys.readouterr().out, "the last step is the last step"
