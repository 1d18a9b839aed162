"""Configs of all stages, composed and checked before the first one starts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.config.checks import check_directory
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError, plain
from swinv2_train.config.override_text import quoted
from swinv2_train.config.overrides import last_of_each
from swinv2_train.config.schema import Config
from swinv2_train.config.section import flat
from swinv2_train.config.structure import structural_difference
from swinv2_train.config.validate import validate
from swinv2_train.pipeline.spec import Pipeline, Stage
from swinv2_train.redact import redacted

WITHOUT_EFFECT = ("run.", "init_from", "init.which", "init.ema", "resume", "replay", "launch.", "tracking.",
                  "watchdog.", "checkpoint.", "eval.", "probe.", "sweep.", "data.num_workers", "data.prefetch_batches",
                  "data.cache_", "data.eval_shards", "data.expected_samples", "engine.micro_batch", "engine.compile",
                  "model.name", "model.attention", "model.sequential_chunk_mib", "model.checkpointing")  # fmt: skip
"""Prefixes of keys that change how a stage runs, but not what it computes (except for rounding)."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its complete config."""

    stage: Stage
    config: Config
    config_dir: Path | None = None

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run.dir)

    def recipe(self) -> dict[str, Any]:
        """Inputs that determine its result, as plain data: config keys, and the weights it starts from."""
        values = {key: value for key, value in flat(self.config).items() if not key.startswith(WITHOUT_EFFECT)}
        stage = self.stage
        values["starts from"] = (
            f"{stage.source} ({stage.weights}{', ema' if stage.ema else ''})"
            if stage.source
            else self.config.init_from or "random weights"
        )
        return json.loads(json.dumps(redacted(values)))

    def arguments(self, weights: Path | None) -> list[str]:
        """Return the arguments of `swinv2-train` that run it."""
        options = ["--config-dir", str(self.config_dir)] if self.config_dir else []
        return [*_overrides(self.stage, self.config.run.name, self.run_dir, weights), *options]


def _overrides(stage: Stage, run_name: str, run_dir: Path, weights: Path | None) -> list[str]:
    start = []
    if stage.source:
        start = [f"init_from={quoted(weights)}", f"init.ema={str(stage.ema).lower()}"]
    elif stage.random:
        start = ["init_from=null", "init.label_map=null"]  # a baseline uses the rest of the recipe
    own = [f"run.name={run_name}", f"run.dir={quoted(run_dir)}"]
    return last_of_each([f"+experiment={stage.experiment}", *stage.overrides, *start, *own])


def plan(pipeline: Pipeline, config_dir: Path | None = None) -> list[PlannedStage]:
    """Compose and check every stage.

    Raises:
        ConfigError: for the first error, with the name of its stage.
    """
    check_directory("dir", pipeline.directory, written=False)
    planned: dict[str, PlannedStage] = {}
    for stage in pipeline.stages:
        source = planned[stage.source] if stage.source else None
        weights = source.run_dir if source else None
        try:
            run_name, run_dir = f"{pipeline.name}-{stage.name}", pipeline.directory / stage.name
            config = compose(_overrides(stage, run_name, run_dir, weights), config_dir)
            validate(config)
        except ConfigError as error:
            raise ConfigError("", stage.name, f"stage {stage.name}: {error}") from error
        planned[stage.name] = PlannedStage(stage, config, config_dir)
        if source:
            _check_link(source, planned[stage.name])
    return list(planned.values())


def _check_link(source: PlannedStage, target: PlannedStage) -> None:
    if key := structural_difference(source.config.model, target.config.model):
        before, after = getattr(source.config.model, key), getattr(target.config.model, key)
        raise ConfigError(
            f"model.{key}",
            after,
            f"stage {target.name} starts from {source.name}, which has {plain(before)}; make them equal",
        )
    checkpoint = source.config.checkpoint
    if target.stage.weights == "best" and not checkpoint.keep_best:
        raise ConfigError(
            "checkpoint.keep_best",
            0,
            f"stage {target.name} starts from the best weights of {source.name}, which keeps none: "
            f"stages.{source.name}.checkpoint.keep_best=1, or weights: newest",
        )
    if target.stage.ema and not source.config.optim.ema_decay:
        raise ConfigError(
            "optim.ema_decay",
            0,
            f"stage {target.name} starts from the averaged weights of {source.name}, which has none",
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a text for every change; keys that only one of them has come from another version."""
    before = redacted(before)  # an earlier version kept credentials
    return [f"{key} {before[key]} -> {value}" for key, value in now.items() if key in before and before[key] != value]


def by_name(planned: Iterable[PlannedStage]) -> dict[str, PlannedStage]:
    """Return the stages by name."""
    return {item.name: item for item in planned}
