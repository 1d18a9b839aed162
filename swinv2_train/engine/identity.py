"""What makes two starts the same run, and what weights must be used with.

Torch-free, so that a resume with another model is refused before anything slow happens.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest
from swinv2_train.config.compose import to_dict
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.validate import resolution

FREE_MODEL_KEYS = ("name", "attention", "sequential_chunk_mib", "checkpointing", "drop_path")
"""Fields of the model that change neither its parameters nor what they mean."""

EARLIER_BACKGROUND = "drop"
"""`data.background` of runs whose checkpoints do not record it: earlier versions dropped the alpha channel."""


def shards_digest(names: list[str], sizes: list[int]) -> str:
    """Which shards a run reads, in short: their names and numbers of samples, in order. Folders may change."""
    digest = hashlib.sha256(json.dumps([names, sizes]).encode()).hexdigest()[:12]
    return f"{sum(sizes)} samples in {len(sizes)} shards ({digest})"


COMPARED = ("model", "task", "data", "order")
"""Sections of the geometry that must not change in a run; the others are for readers of the weights."""


def geometry(
    config: Config,
    shards: str,
    classes: list[str] | None = None,
    statistics: tuple[list[float], list[float]] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of its run: dotted config keys and their values.

    `task`, `model`, `data`, `classes` and `preprocess` are what the weights need; `order` is what the sequence of
    samples hangs on.

    Args:
        shards: the digest of the training shards.
        classes: names of the classes.
        statistics: per-channel mean and deviation, where `data.mean` and `data.std` only say where they come from.
    """
    mean, std = statistics or (config.data.mean, config.data.std)
    model = {key: value for key, value in to_dict(config.model).items() if key not in FREE_MODEL_KEYS}
    return {
        "task": to_dict(config.task),
        "model": model,
        "data": {
            "resolution": list(resolution(config)),
            "mean": config.data.mean,
            "std": config.data.std,
            "background": config.data.background,
        },
        "order": {
            "seed": config.seed,
            "optim.global_batch": config.optim.global_batch,
            "data.shuffle_samples": config.data.shuffle_samples,
            "data.shards": shards,
            "data.image": config.data.image,
        },
        "classes": classes,
        "preprocess": {
            "crop_pct": config.data.crop_pct,
            "crop_mode": config.data.crop_mode,
            "interpolation": config.data.augment.interpolation,
            "mean": mean,
            "std": std,
            "background": config.data.background,
        },
    }


def check_same_run(directory: Path, config: Config, shards: str) -> None:
    """Refuse to continue a run with another model or another order of samples.

    Args:
        directory: the run directory.
        shards: the digest of the training shards.

    Raises:
        ConfigError: naming the first key that differs, with both values.
    """
    saved = saved_geometry(directory)
    if saved is None:
        return
    present = geometry(config, shards)
    for section in COMPARED:
        prefix = "" if section == "order" else f"{section}."
        for key, value in present[section].items():
            before = saved.get(section, {}).get(key, _default(config, section, key))
            if before != value:
                raise ConfigError(
                    f"{prefix}{key}",
                    value,
                    f"the run in {directory} was started with {before}; "
                    "set it back, or take another run.dir for a new run",
                )


def saved_geometry(directory: Path) -> dict[str, Any] | None:
    """The geometry in the newest checkpoint of a run whose manifest can be read; None where it has none."""
    for path in list_checkpoints(directory / "checkpoints"):
        try:
            saved = read_manifest(path).geometry
        except CheckpointError:
            continue
        if all(isinstance(saved.get(section, {}), dict) for section in COMPARED):
            return saved
    return None


def _default(config: Config, section: str, key: str) -> Any:
    """What a run had for a field that its version did not know yet: the default of today, which changes nothing."""
    if (section, key) == ("data", "background"):
        return EARLIER_BACKGROUND
    return getattr(type(getattr(config, section))(), key, None) if section in ("model", "task") else None


def is_used(directory: Path) -> bool:
    """Whether a run has already left something in a directory."""
    left = any((directory / name).exists() for name in ("resolved.yaml", "metrics.jsonl"))
    return left or bool(list_checkpoints(directory / "checkpoints"))
