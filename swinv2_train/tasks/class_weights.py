"""Weights of classes in a loss, from `task.class_weights`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swinv2_train.config.errors import ConfigError


def class_weights(setting: Any, counts: Mapping[int, int] | None, num_classes: int, advice: str) -> Tensor | None:
    """Return the weight of every class, (num_classes,) float32; None without weights.

    Args:
        setting: `task.class_weights`: null, `balanced`, or a list of numbers.
        counts: number of images or pixels by class; None or empty if they are unknown.
        advice: remedy if `balanced` lacks them.

    Raises:
        ConfigError: if they are unknown, or the list does not match the classes.
    """
    if setting is None:
        return None
    if setting == "balanced":
        if not counts:
            raise ConfigError("task.class_weights", "balanced", advice)
        return torch.tensor(balanced_weights(counts, num_classes), dtype=torch.float32)
    if len(setting) != num_classes:
        raise ConfigError(
            "task.class_weights",
            f"[{len(setting)} numbers]",
            f"there are {num_classes} classes: set one number for each",
        )
    return torch.tensor([float(weight) for weight in setting], dtype=torch.float32)


def balanced_weights(counts: Mapping[int, int], num_classes: int) -> list[float]:
    """Return weights inversely proportional to the counts of the classes; their mean over all that is counted is 1.

    A class without any gets 0.
    """
    total, present = sum(counts.values()), sum(count > 0 for count in counts.values())
    return [total / (present * counts[k]) if counts.get(k) else 0.0 for k in range(num_classes)]
