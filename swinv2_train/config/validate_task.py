"""Refuse a task section that cannot be run; part of `validate`, and torch-free like it."""

from __future__ import annotations

import math
import re

from swinv2_train.config.checks import at_least, one_of, resolution, share
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TASK_SECTIONS, ClassificationConfig, SimMIMConfig

_NUMBER = r"\d+(\.\d+)?"
_POLICIES = {
    "rand": rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw|3a|0)))*",
    "augmix": rf"augmix(-(m\d+|w\d+|d\d+|a{_NUMBER}|b[01]|mstd{_NUMBER}))*",
    "auto-augment": rf"(v0|v0r|original|originalr|3a)(-mstd{_NUMBER})?",
}
"""What timm's parsers take; they pass over in silence, or end in an assertion at, what they do not."""


def validate_task(config: Config) -> None:
    """Check the task section, and what it asks of the others.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    task = config.task
    one_of("task.name", task.name, tuple(TASK_SECTIONS))
    if isinstance(task, SimMIMConfig):
        _validate_simmim(config, task)
    elif isinstance(task, ClassificationConfig):
        _validate_classification(config, task)


def _validate_simmim(config: Config, task: SimMIMConfig) -> None:
    if task.mask_patch_size < 1 or task.mask_patch_size % config.model.patch_size:
        raise ConfigError(
            "task.mask_patch_size",
            task.mask_patch_size,
            f"must be a multiple of model.patch_size={config.model.patch_size}",
        )
    if not 0 < task.mask_ratio < 1:
        raise ConfigError(
            "task.mask_ratio", task.mask_ratio, f"is a share above 0 and below 1{percent(task.mask_ratio)}"
        )
    window = task.norm_target_window
    if window and (window < 3 or window % 2 == 0):
        raise ConfigError("task.norm_target_window", window, "is an odd number of pixels from 3 on, or 0 for none")
    height, width = resolution(config)
    patches = -(-height // task.mask_patch_size) * -(-width // task.mask_patch_size)
    if patches < 2:
        raise ConfigError(
            "data.resolution",
            config.data.resolution,
            f"holds a single mask patch of {task.mask_patch_size} pixels; nothing could be left visible",
        )


def _validate_classification(config: Config, task: ClassificationConfig) -> None:
    at_least("task.num_classes", task.num_classes, 0)
    if task.num_classes == 1 and not task.multi_label:
        raise ConfigError("task.num_classes", 1, "a single class is always right; take 2, or task.multi_label=true")
    if not 0 <= task.label_smoothing < 1:
        mend = f"is a share from 0 and below 1{percent(task.label_smoothing)}"
        raise ConfigError("task.label_smoothing", task.label_smoothing, mend)
    for key in ("mixup", "cutmix", "color_jitter"):
        value = getattr(task, key)
        at_least(f"task.{key}", value, 0)
        if not math.isfinite(value):
            raise ConfigError(f"task.{key}", value, "must be a finite number")
    for key in ("mix_prob", "mix_switch_prob", "erase_prob"):
        share(f"task.{key}", getattr(task, key))
    _validate_colours(config, task)
    _validate_class_weights(task)
    _validate_pairs(config, task)


def _validate_colours(config: Config, task: ClassificationConfig) -> None:
    policy = task.auto_augment
    if policy is not None and not any(re.fullmatch(pattern, policy) for pattern in _POLICIES.values()):
        raise ConfigError(
            "task.auto_augment",
            policy,
            "is not in timm's notation, such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, v0, original-mstd0.5 or 3a; "
            "null for none",
        )
    key = "auto_augment" if policy is not None else "color_jitter"
    if (policy is not None or task.color_jitter) and config.model.in_channels != 3:
        raise ConfigError(
            f"task.{key}",
            getattr(task, key),
            f"is for images of 3 channels, and model.in_channels={config.model.in_channels}: "
            "set task.auto_augment=null task.color_jitter=0",
        )


def _validate_class_weights(task: ClassificationConfig) -> None:
    weights = task.class_weights
    if weights is None or weights == "balanced":
        return
    numbers = isinstance(weights, (list, tuple)) and all(
        isinstance(weight, (int, float)) and not isinstance(weight, bool) for weight in weights
    )
    if not numbers:
        raise ConfigError("task.class_weights", weights, "is null, balanced, or a list with a number for each class")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigError("task.class_weights", weights, "needs numbers from 0 on, and not all of them 0")
    if task.num_classes and len(weights) != task.num_classes:
        raise ConfigError(
            "task.class_weights",
            weights,
            f"has {len(weights)} numbers for task.num_classes={task.num_classes}; give one for each class",
        )


def _validate_pairs(config: Config, task: ClassificationConfig) -> None:
    """Samples are mixed in blocks of 2 * repeats, which a global batch must hold whole."""
    at_least("task.repeats", task.repeats, 1)
    mixes = task.mix_prob > 0 and (task.mixup > 0 or task.cutmix > 0)
    block = task.repeats * (2 if mixes else 1)
    total = config.optim.global_batch
    if total % block:
        why = "mixing takes pairs of samples" if mixes else "the copies of a sample stay in one batch"
        repeated = f", each {task.repeats} times (task.repeats)" if task.repeats > 1 and mixes else ""
        raise ConfigError(
            "optim.global_batch",
            total,
            f"must be a multiple of {block}, because {why}{repeated}; take {-(-total // block) * block}"
            + (", or task.mix_prob=0" if mixes else ""),
        )
