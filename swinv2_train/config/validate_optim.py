"""Reject an optim section that cannot be run or whose rates contradict each other; part of `validate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from swinv2_train.config.checks import at_least
from swinv2_train.config.choices import check_choice
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.model import NUM_STAGES
from swinv2_train.config.schema import OptimConfig


def validate_optim(optim: OptimConfig) -> None:
    """Check the optim section.

    Raises:
        ConfigError: for the first error.
    """
    at_least("optim.global_batch", optim.global_batch, 1)
    check_choice("optim.schedule", optim.schedule)
    if (optim.epochs is None) == (optim.steps is None):
        given = "neither is" if optim.epochs is None else "both are"
        raise ConfigError(
            "optim.steps",
            optim.steps,
            f"set the length of the run with optim.steps or optim.epochs; {given} set (null unsets one)",
        )
    if optim.warmup_epochs is not None and optim.warmup_steps is not None:
        raise ConfigError(
            "optim.warmup_steps",
            optim.warmup_steps,
            "set either warmup_steps or warmup_epochs; both are set (null unsets one)",
        )
    if optim.schedule == "multistep" and not optim.milestones:
        raise ConfigError("optim.milestones", optim.milestones, "optim.schedule=multistep needs at least one milestone")
    for key in ("steps", "epochs"):
        if getattr(optim, key) is not None and not getattr(optim, key) > 0:
            raise ConfigError(f"optim.{key}", getattr(optim, key), "must be above 0")
    for key in ("warmup_steps", "warmup_epochs"):
        if getattr(optim, key) is not None:
            at_least(f"optim.{key}", getattr(optim, key), 0)
    _validate_rates(optim)
    _validate_schedule(optim)
    _validate_freeze(optim.freeze)
    _validate_scales(optim.lr_scales)


def _validate_scales(scales: Any) -> None:
    if scales is None:
        return
    if not isinstance(scales, Mapping):
        raise ConfigError("optim.lr_scales", scales, "must be factors by name, such as {backbone: 0.1}")
    for name, factor in scales.items():
        if not isinstance(name, str):
            raise ConfigError("optim.lr_scales", scales, f"{name} is not the name of a module")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            hint = f"the factor of {name} must be above 0 and finite; optim.freeze keeps a module from training"
            raise ConfigError("optim.lr_scales", scales, hint)


def _validate_freeze(freeze: Any) -> None:
    if freeze is None:
        return
    if isinstance(freeze, Mapping):
        count = freeze.get("stages")
        if set(freeze) != {"stages"} or isinstance(count, bool) or not isinstance(count, int):
            raise ConfigError("optim.freeze", freeze, "must be {stages: N}, the backbone's first N stages, or null")
        if not 0 <= count <= NUM_STAGES:
            raise ConfigError("optim.freeze.stages", count, f"must be from 0 to {NUM_STAGES}")
    elif not isinstance(freeze, list) or not all(isinstance(name, str) for name in freeze):
        hint = "give a list of names, such as [backbone.patch_embed,backbone.layers.0], or {stages: 2}"
        raise ConfigError("optim.freeze", freeze, hint)
    elif not freeze:
        raise ConfigError("optim.freeze", freeze, "is an empty list; null freezes nothing")


def _validate_rates(optim: OptimConfig) -> None:
    for key in ("lr", "lr_scale", "eps"):
        if not 0 < getattr(optim, key) < math.inf:
            raise ConfigError(f"optim.{key}", getattr(optim, key), "must be above 0 and finite")
    for key in ("warmup_lr", "min_lr", "weight_decay", "clip_norm", "lr_reference_batch"):
        at_least(f"optim.{key}", getattr(optim, key), 0)
    for key in ("layer_decay", "gamma"):
        value = getattr(optim, key)
        if not 0 < value <= 1:
            raise ConfigError(f"optim.{key}", value, f"must be a factor above 0 and at most 1{percent(value)}")
    if not 0 <= optim.ema_decay < 1:
        raise ConfigError("optim.ema_decay", optim.ema_decay, "must be 0 (off) or a number below 1, such as 0.9999")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        raise ConfigError("optim.betas", optim.betas, "must be a pair of numbers from 0 to below 1")
    if optim.betas[0] > optim.betas[1]:
        swapped = str(optim.betas[::-1]).replace(" ", "")
        hint = f"the gradient's mean would be slower than its square's; did you mean optim.betas={swapped}?"
        raise ConfigError("optim.betas", optim.betas, hint)


def _validate_schedule(optim: OptimConfig) -> None:
    if optim.schedule in ("cosine", "linear") and optim.min_lr > optim.lr:
        hint = f"is above optim.lr={optim.lr:g}, so the rate would rise; set optim.min_lr to at most that, or 0"
        raise ConfigError("optim.min_lr", optim.min_lr, hint)
    if (optim.warmup_epochs or optim.warmup_steps) and optim.warmup_lr > optim.lr:
        hint = f"is above optim.lr={optim.lr:g}, so the warm-up would lower the rate; set it to at most that, or 0"
        raise ConfigError("optim.warmup_lr", optim.warmup_lr, hint)
    if not all(0 < mark < math.inf for mark in optim.milestones):
        raise ConfigError("optim.milestones", optim.milestones, "must be numbers above 0")
