"""Settings of `data` that tasks on entire images do not use: their own keys select the size of images."""

from __future__ import annotations

from swinv2_train.config.data import AugmentConfig, DataConfig


def without_effect(data: DataConfig, task: str, key: str) -> list[str]:
    """Return a warning for every such setting that differs from its default.

    Args:
        task: name of the task in a sentence.
        key: the key of the task that selects the sizes of training images.
    """
    augment, usual = AugmentConfig(), DataConfig()
    lines = [
        f"data.augment.{name}={getattr(data.augment, name)} has no effect in {task}; task.{key} sets the sizes of "
        "training images"
        for name in ("scale", "ratio")
        if getattr(data.augment, name) != getattr(augment, name)
    ]
    return lines + [
        f"data.{name}={getattr(data, name)} affects features alone: the task itself uses entire images"
        for name in ("crop_pct", "crop_mode")
        if getattr(data, name) != getattr(usual, name)
    ]
