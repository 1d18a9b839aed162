"""Specification of a pipeline: its file in `conf/pipeline/`, with the changes of the command line.

    name: giant
    dir: outputs/giant            # default outputs/NAME; contains the run directories of the stages
    experiment: in1k_small_256    # for stages that name none
    launcher: ""                  # prefix of `swinv2-train`, such as `torchrun --nproc-per-node=8 --no-python`
    stages:
      - name: supervised
        experiment: supervised_giant
        overrides: [optim.lr=1e-3]
        init_from: simmim         # an earlier stage; null: from random weights; omitted: as in the experiment
        weights: best             # checkpoint of that stage: newest (default), or best by its checkpoint.best_metric
        ema: false                # use the moving average of its weights
        title: the second stage   # for tables
      - name: supervised-scratch
        baseline_of: supervised   # its experiment and overrides, including those of the command line; init_from as set
                                  # here, by default null

The file is plain YAML: a chain has no groups and no interpolations, and its stages are composed one by one.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import conf_dir
from swinv2_train.config.override_text import plain_text
from swinv2_train.config.overrides import last_of_each, refuse_hydra_keys, refuse_repeated
from swinv2_train.config.paths import user_path
from swinv2_train.config.plugins import as_override, without_imports
from swinv2_train.reading import read_text

PIPELINE_KEYS = ("name", "dir", "experiment", "launcher", "stages")
STAGE_KEYS = ("name", "experiment", "overrides", "init_from", "weights", "ema", "title", "baseline_of")
OWN_KEYS = ("run.dir", "run.name", "init.which", "init.ema", "resume", "replay", "hydra", "experiment")
"""Keys that the pipeline sets for each stage and overrides cannot."""
FREE_KEYS = ("resume.allow",)
"""Keys below those of `OWN_KEYS` that the user may set."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Stage:
    """One run of the chain."""

    name: str
    experiment: str
    overrides: tuple[str, ...] = ()
    """Overrides of the file, then those of the command line."""
    source: str | None = None
    """Stage whose weights it starts from."""
    random: bool = False
    """True to start from random weights, whatever the experiment sets."""
    weights: str = "newest"
    ema: bool = False
    title: str = ""
    baseline_of: str | None = None
    """Stage that has the same recipe with pretraining."""


@dataclass(frozen=True)
class Pipeline:
    """A chain of stages in a directory."""

    name: str
    directory: Path
    stages: tuple[Stage, ...]
    launcher: tuple[str, ...] = ()


@dataclass
class Changes:
    """Changes of a command line: see `split_arguments`."""

    settings: dict[str, str]
    """Values of dir, experiment, and launcher."""
    every_stage: list[str]
    by_stage: dict[str, list[str]]


def pipelines(config_dir: Path | None = None) -> list[tuple[str, str]]:
    """Return the available pipelines, each with its description: the first line of its file."""
    found: dict[str, str] = {}
    for directory in _directories(config_dir):
        for path in sorted(directory.glob("*.yaml")):
            text = path.read_text(errors="replace") if path.is_file() else ""
            first = (text.splitlines() or [""])[0]
            found.setdefault(path.stem, first.lstrip("# ") if first.startswith("#") else "")
    return sorted(found.items())


def _directories(config_dir: Path | None) -> list[Path]:
    return [root / "pipeline" for root in (config_dir, conf_dir()) if root is not None]


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, Changes]:
    """Parse a command line: (name of the pipeline, its changes).

    `KEY=VALUE` applies to every stage, `stages.NAME.KEY=VALUE` to one; `dir`, `experiment`, and `launcher` are keys of
    the pipeline itself.

    Raises:
        ConfigError: for an item other than KEY=VALUE, for a repeated key, and for a key that the pipeline sets itself.
    """
    refuse_repeated(arguments)
    name, changes = None, Changes({}, [], {})
    for item in arguments:
        key, equals, value = item.partition("=")
        sign = key[: len(key) - len(key.lstrip("+~"))]
        key = key[len(sign) :]
        if not equals or not key:
            raise ConfigError(
                "", item, f"cannot read {item!r}: write KEY=VALUE, or stages.NAME.KEY=VALUE for one stage"
            )
        if key == "pipeline":
            name = value
        elif key in ("dir", "experiment", "launcher") and not sign:
            changes.settings[key] = value
        elif key.startswith("stages."):
            stage, _, inner = key.removeprefix("stages.").partition(".")
            if not inner:
                raise ConfigError(
                    key, value, "name the stage and a key of its config, such as stages.NAME.optim.lr=1e-3"
                )
            _refuse_own(inner, value)
            changes.by_stage.setdefault(stage, []).append(f"{sign}{inner}={value}")
        else:
            _refuse_own(key, value)
            changes.every_stage.append(item)
    return name, changes


def _refuse_own(key: str, value: str) -> None:
    refuse_hydra_keys([f"{key}={value}"])
    if key not in FREE_KEYS and any(key == own or key.startswith(f"{own}.") for own in OWN_KEYS):
        raise ConfigError(key, value, "the pipeline sets this for each stage; dir=DIR moves all stages")


def load_pipeline(name: str, changes: Changes, config_dir: Path | None = None) -> Pipeline:
    """Read a pipeline's file and apply the changes of the command line.

    Raises:
        ConfigError: naming the error in it.
    """
    directories = _directories(config_dir)
    path = next((found for d in directories if (found := d / f"{name}.yaml").is_file()), None)
    if path is None or not _NAME.fullmatch(name):
        known = ", ".join(known for known, _ in pipelines(config_dir))
        close = difflib.get_close_matches(name, [known for known, _ in pipelines(config_dir)], n=1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {known}"
        raise ConfigError("pipeline", name, f"unknown pipeline; {hint}")
    values = _read(path)
    _only(values, PIPELINE_KEYS, str(path))
    _texts(values, ("name", "dir", "experiment", "launcher"), str(path))
    name = values.get("name") or name
    if not _NAME.fullmatch(name):
        raise ConfigError("", name, f"{path}: name must consist of letters, digits, - and _, not {name!r}")
    default = changes.settings.get("experiment") or values.get("experiment")
    listed = values.get("stages")
    if not isinstance(listed, list) or not listed:
        raise ConfigError("", path, f"{path}: stages must be a list with at least one stage")
    stages: dict[str, Stage] = {}
    for entry in listed:
        stage = _stage(entry, stages, default, path)
        stages[stage.name] = stage
    for stage in changes.by_stage:
        if stage not in stages:
            raise ConfigError("", stage, f"stages.{stage}: unknown stage; use one of {', '.join(stages)}")
    launcher = changes.settings.get("launcher", values.get("launcher") or "")
    try:
        prefix = tuple(shlex.split(launcher))
    except ValueError as error:
        raise ConfigError("launcher", launcher, f"cannot be read as a command ({error})") from error
    directory = plain_text(changes.settings.get("dir", "")) or values.get("dir") or f"outputs/{name}"
    return Pipeline(name, user_path(directory), tuple(_changed(stage, changes) for stage in stages.values()), prefix)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(read_text(path))
    except OSError as error:
        raise ConfigError("", path, f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError("", path, f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError("", path, f"{path} is not a pipeline: it needs the keys name and stages")
    return values


def _only(values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            mean = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
            raise ConfigError("", key, f"{where}: unknown key {key!r}; {mean}")


def _texts(values: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        if not isinstance(values.get(key), (str, NoneType)):
            raise ConfigError("", values[key], f"{where}: {key} must be a string, not {values[key]!r}; use quotes")


def _stage(entry: Any, earlier: dict[str, Stage], experiment: str | None, path: Path) -> Stage:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError("", entry, f"{path}: a stage needs a name of letters, digits, - and _, not {entry!r}")
    where = f"{path}: stage {name}"
    _only(entry, STAGE_KEYS, where)
    _texts(entry, ("experiment", "init_from", "title", "baseline_of"), where)
    if name in earlier:
        raise ConfigError("", name, f"{where} is listed twice")
    for key in ("init_from", "baseline_of"):
        if entry.get(key) is not None and entry[key] not in earlier:
            raise ConfigError("", entry[key], f"{where}: {key}: {entry[key]} is not an earlier stage")
    overrides = [] if entry.get("overrides") is None else entry["overrides"]
    if not isinstance(overrides, list) or not all(isinstance(item, str) and "=" in item for item in overrides):
        raise ConfigError("", overrides, f"{where}: overrides must be a list of key=value")
    try:
        refuse_repeated(overrides)
    except ConfigError as error:
        raise ConfigError("", name, f"{where}: {error}") from None
    for item in overrides:
        key, _, value = item.lstrip("+~").partition("=")
        _refuse_own(key, value)
    if entry.get("weights", "newest") not in ("newest", "best"):
        raise ConfigError("", entry["weights"], f"{where}: weights must be newest or best")
    if not isinstance(entry.get("ema", False), bool):
        raise ConfigError("", entry["ema"], f"{where}: ema must be true or false")
    for key, unset in (("weights", "newest"), ("ema", False)):
        if entry.get(key, unset) != unset and entry.get("init_from") is None:
            raise ConfigError("", entry[key], f"{where}: {key} requires init_from, the name of an earlier stage")
    base = earlier[entry["baseline_of"]] if entry.get("baseline_of") is not None else None
    chosen = entry.get("experiment") or (base.experiment if base else experiment)
    if not chosen:
        raise ConfigError("", name, f"{where} names no experiment, and the pipeline has none for all")
    source = entry.get("init_from")
    return Stage(
        name=name,
        experiment=chosen,
        overrides=_merged([*(base.overrides if base else ()), *overrides]),
        source=source,
        random=source is None and (base is not None or "init_from" in entry),
        weights=entry.get("weights", "newest"),
        ema=entry.get("ema", False),
        title=entry.get("title") or "",
        baseline_of=base.name if base else None,
    )


def _changed(stage: Stage, changes: Changes) -> Stage:
    own = [*changes.by_stage.get(stage.baseline_of or "", []), *changes.by_stage.get(stage.name, [])]
    added = [*changes.every_stage, *own]
    if (stage.source or stage.random) and any(item.lstrip("+~").startswith("init_from=") for item in added):
        start = f"the weights of {stage.source}" if stage.source else "random weights"
        hint = f"init_from: stage {stage.name} starts from {start}, as set in the pipeline's file; change it there"
        raise ConfigError("", added, hint)
    return replace(stage, overrides=_merged([*stage.overrides, *added]))


def _merged(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the last override of every key; those of `imports` add up, as in a run."""
    modules, others = without_imports(overrides)
    return (*last_of_each(others), *as_override(modules))
