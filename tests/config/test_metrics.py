"""Every metric knows its better end, and the settings of a run and a sweep follow it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swinv2_train.checkpoint.survey import best_metric_of
from swinv2_train.config.compose import to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.metrics import (
    best_mode,
    better_end,
    check_recorded,
    checked_direction,
    checked_mode,
    evaluated_metrics,
    probed_metrics,
    recorded_metrics,
)
from swinv2_train.config.schema import CheckpointConfig, Config, ProbeConfig
from swinv2_train.config.tasks import ClassificationConfig, SimMIMConfig, TaskConfig
from swinv2_train.config.validate import validate
from swinv2_train.tasks.metrics import classification_metrics

TASKS = [SimMIMConfig(), *(ClassificationConfig(num_classes=n, multi_label=m) for n in (3, 10) for m in (False, True))]


def made(task: TaskConfig) -> Config:
    config = Config(task=task)
    config.optim.steps, config.optim.ema_decay, config.data.eval_shards = 10, 0.9, "x"
    config.probe = ProbeConfig(shards="a", eval_shards="b", every_steps=1000)
    return config


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_metric_of_an_evaluation_has_a_direction(task: TaskConfig) -> None:
    config = made(task)
    names = [*evaluated_metrics(config), *probed_metrics(config)]
    for name in names:
        end = better_end(name)
        assert end == ("min" if name.rpartition("_")[2].rpartition("/")[2] in ("loss", "ece") else "max"), name
        config.checkpoint = CheckpointConfig(keep_best=1, best_metric=name)
        validate(config)
        assert best_mode(config.checkpoint) == end
        config.checkpoint.best_mode = end
        validate(config)
        config.checkpoint.best_mode = {"min": "max", "max": "min"}[end or ""]
        with pytest.raises(ConfigError, match=f"checkpoint.best_mode=.*values of {name} are better"):
            validate(config)
    assert set(names) <= set(recorded_metrics(config))
    for name in ("eval/samples", "eval/ema_samples", "eval/los", "loss"):
        config.checkpoint = CheckpointConfig(keep_best=1, best_metric=name)
        with pytest.raises(ConfigError, match=f"checkpoint.best_metric={name}: no evaluation reports it"):
            validate(config)


def test_the_names_are_those_that_the_task_measures() -> None:
    for task in TASKS[1:]:
        count = task.num_classes  # type: ignore[attr-defined]
        sums = {"samples": 2.0, "total": 1.0, "correct_1": 1.0, "correct_5": 1.0, "class_samples": np.ones(count),
                "class_correct": np.ones(count), "calibration": np.ones((15, 3))}  # fmt: skip
        if task.multi_label:  # type: ignore[attr-defined]
            sums |= {"histograms": np.ones((count, 2, 8)), "class_predicted": np.ones(count)}
        assert set(classification_metrics(sums)) - {"samples"} == set(task.metrics())


def test_the_average_is_known_only_where_it_is_evaluated() -> None:
    config = made(SimMIMConfig())
    config.eval.ema = False
    assert evaluated_metrics(config) == ["eval/loss"]


def test_a_metric_without_a_direction_needs_one() -> None:
    for name in ("grad_norm", "eval/signal/largest", "eval/unknown"):
        with pytest.raises(ConfigError, match=f"{name}: which of its values are better is not known"):
            checked_direction(name, None)
        assert checked_direction(name, "maximize") == "maximize"
        assert checked_mode(name, "min") == "min"
    with pytest.raises(ConfigError, match=r"sweep.direction=up: must be one of minimize, maximize"):
        checked_direction("loss", "up")


def test_a_sweep_compares_what_its_jobs_record() -> None:
    config = made(SimMIMConfig())
    for name in ("loss", "eval/loss", "eval/ema_loss", "eval/probe/knn_top1", "images_per_second"):
        check_recorded(config, name)
    config.data.eval_shards = ""
    with pytest.raises(ConfigError, match=r"sweep.metric=eval/loss: .*evaluates nothing: set data.eval_shards"):
        check_recorded(config, "eval/loss")
    config.launch.dry_run = True
    check_recorded(config, "eval/loss")


@pytest.mark.parametrize("mode", [None, "min", "max"])
def test_checkpoints_of_an_older_run_are_ranked_by_what_is_better(tmp_path: Path, mode: str | None) -> None:
    config = made(ClassificationConfig(num_classes=10))
    config.checkpoint = CheckpointConfig(best_metric="eval/top1", best_mode=mode)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert best_metric_of(tmp_path / "checkpoints") == ("eval/top1", "max")
    (tmp_path / "resolved.yaml").write_text("{")
    assert best_metric_of(tmp_path / "checkpoints") == ("eval/loss", "min")
