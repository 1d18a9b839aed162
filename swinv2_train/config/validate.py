"""Reject a config that cannot be run, before any slow import.

Every check raises a `ConfigError` with the field, the value, and the fix.
"""

from __future__ import annotations

import math
from typing import Any

from swinv2_train.config import own_parts
from swinv2_train.config.checks import at_least, check_background, check_statistics, one_of, resolution, share
from swinv2_train.config.choices import check_choice
from swinv2_train.config.clips import check_clips
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.metrics import PROBED, better_end, checked_mode, evaluated_metrics, probed_metrics
from swinv2_train.config.model import stage_geometry
from swinv2_train.config.order import check_order
from swinv2_train.config.resume import check_resume
from swinv2_train.config.schema import Config, LaunchConfig
from swinv2_train.config.section import flat
from swinv2_train.config.tasks import TASK_SECTIONS
from swinv2_train.config.validate_model import validate_model
from swinv2_train.config.validate_optim import validate_optim
from swinv2_train.config.values import check_label, check_values

__all__ = ["resolution", "validate", "validate_data"]


DERIVED_DEEPSPEED_KEYS = {
    "train_batch_size": "optim.global_batch",
    "train_micro_batch_size_per_gpu": "engine.micro_batch",
    "gradient_accumulation_steps": "optim.global_batch and engine.micro_batch",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "the optim section",
    "scheduler": "the optim section",
    "bf16": "engine.precision",
    "fp16": "engine.precision and engine.fp16_initial_scale_power",
    "data_types": "engine.grad_accum_dtype",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.compute_grad_norm": "the guard, which needs the gradient norm",
}
"""Keys that `engine.deepspeed` may not set, with the field that sets them: other code relies on that field."""
REDUCTION_KEYS = ("communication_data_type", "prescale_gradients", "gradient_predivide_factor")
"""Keys of DeepSpeed's reduction of gradients, which one engine does not use."""
MAY_BE_INFINITE = ("guard.zscore", "guard.loss_ratio", "guard.grad_norm_ratio")
"""Limits that .inf turns off."""
LEAST_CROP = 0.05
"""A smaller fraction would enlarge an image more than 20 times before its crop, so a damaged file could request any
amount of memory."""


def validate_data(config: Config) -> None:
    """Check how images are read and prepared. The shards themselves are checked when they are opened.

    Raises:
        ConfigError: for the first error.
    """
    data = config.data
    check_choice("data.augment.interpolation", data.augment.interpolation)
    if data.augment.transform is not None:
        known = own_parts.parts("transforms")
        if data.augment.transform not in known:
            hint = f"is not a transform of a module in imports ({', '.join(known) or 'none'}); --import its module"
            raise ConfigError("data.augment.transform", data.augment.transform, hint)
    for key in ("scale", "ratio"):
        bounds = getattr(data.augment, key)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] or (key == "scale" and bounds[1] > 1):
            raise ConfigError(
                f"data.augment.{key}",
                bounds,
                "must be a pair [low, high] above 0" + (" and up to 1" if key == "scale" else "") + ", low first",
            )
    for key in ("hflip", "vflip"):
        share(f"data.augment.{key}", getattr(data.augment, key))
    check_choice("data.crop_mode", data.crop_mode)
    if not LEAST_CROP <= data.crop_pct <= 1:
        hint = f"is a share from {LEAST_CROP} to 1{percent(data.crop_pct)}"
        raise ConfigError("data.crop_pct", data.crop_pct, hint)
    share("data.max_broken_share", data.max_broken_share)
    check_background(data.background, config.model.in_channels)
    at_least("data.max_pixels", data.max_pixels, 1)
    if data.scaled_decoding and not data.crop_decoding:
        raise ConfigError("data.scaled_decoding", True, "has no effect without data.crop_decoding: set both or neither")
    if data.scaled_decoding and config.task.repeats > 1:
        hint = f"has no effect with task.repeats={config.task.repeats}, which decodes entire images: set it to false"
        raise ConfigError("data.scaled_decoding", True, hint)
    minima = (("shuffle_samples", 1), ("connections", 1), ("num_workers", 0), ("prefetch_batches", 1))
    for key, least in minima:
        at_least(f"data.{key}", getattr(data, key), least)
    check_values(config)
    check_label(data.label)
    check_order(config)
    if data.expected_samples is not None:
        at_least("data.expected_samples", data.expected_samples, 1)
    if not data.cache_gib > 0:
        raise ConfigError("data.cache_gib", data.cache_gib, "must be above 0")
    for key in ("mean", "std"):
        value = getattr(data, key)
        if isinstance(value, str):
            one_of(f"data.{key}", value, ("imagenet", "dataset"))
            if value == "imagenet" and config.model.in_channels != 3:
                raise ConfigError(
                    f"data.{key}",
                    value,
                    f"has 3 channels, model.in_channels={config.model.in_channels}; use dataset, or a list",
                )
        elif not isinstance(value, list) or len(value) != config.model.in_channels:
            raise ConfigError(
                f"data.{key}", value, f"must have one number per channel, model.in_channels={config.model.in_channels}"
            )
        elif any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in value):
            raise ConfigError(f"data.{key}", value, "needs numbers")
        else:
            check_statistics(f"data.{key}", value)
            if key == "std" and not all(number > 0 for number in value):
                raise ConfigError("data.std", value, "every standard deviation must be above 0")


def _validate_run(config: Config) -> None:
    if not config.run.name:
        raise ConfigError("run.name", "''", "must not be empty: the run directory is named after it")
    if not -(2**63) <= config.seed < 2**64:
        raise ConfigError("seed", config.seed, "must have at most 64 bits, such as a number from 0 to 2**64 - 1")


def _validate_engine(config: Config) -> None:
    engine = config.engine
    check_choice("engine.zero_stage", engine.zero_stage)
    check_choice("engine.precision", engine.precision)
    check_choice("engine.grad_accum_dtype", engine.grad_accum_dtype)
    if engine.grad_accum_dtype == "bf16" and engine.precision != "bf16":
        raise ConfigError("engine.grad_accum_dtype", "bf16", f"requires engine.precision=bf16, not {engine.precision}")
    if engine.grad_accum_dtype == "fp32" and engine.precision != "fp32" and engine.zero_stage == 0:
        raise ConfigError("engine.grad_accum_dtype", "fp32", "DeepSpeed requires engine.zero_stage=1 or higher for it")
    if engine.precision == "fp16" and engine.zero_stage == 0:
        raise ConfigError(
            "engine.zero_stage", 0, "DeepSpeed's fp16 without ZeRO loses its loss scale on resume; use stage 1"
        )
    if engine.micro_batch is not None:
        at_least("engine.micro_batch", engine.micro_batch, 1)
    zero = engine.deepspeed.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError("engine.deepspeed.zero_optimization", zero, "must be a section of keys, such as overlap_comm")
    if "reduce_bucket_size" in zero:
        _check_bucket(zero["reduce_bucket_size"])
    for key, hint in DERIVED_DEEPSPEED_KEYS.items():
        section, _, inner = key.partition(".")
        given = engine.deepspeed.get(section, {}) if inner else engine.deepspeed
        if (inner or section) in given:
            raise ConfigError(f"engine.deepspeed.{key}", given[inner or section], f"is set by {hint}")
    for key in REDUCTION_KEYS:
        if engine.sums_in_fp32 and key in engine.deepspeed:
            hint = "has no effect with engine.grad_accum_dtype=fp32, which reduces gradients in fp32; remove it"
            raise ConfigError(f"engine.deepspeed.{key}", engine.deepspeed[key], hint)


def _check_bucket(given: Any) -> None:
    try:
        elements = float(given)  # YAML reads 5e8 as text
    except (TypeError, ValueError):
        elements = math.nan
    if isinstance(given, bool) or not (1 <= elements < math.inf and elements.is_integer()):
        key = "engine.deepspeed.zero_optimization.reduce_bucket_size"
        raise ConfigError(key, given, "must be a whole number of elements of at least 1, such as 50000000")


def _validate_safety(config: Config) -> None:
    guard, checkpoint, watchdog = config.guard, config.checkpoint, config.watchdog
    check_choice("guard.policy", guard.policy)
    for key, least in (("min_steps", 8), ("rollback_batches", 1), ("max_rollbacks", 1), ("max_skipped_in_row", 1)):
        at_least(f"guard.{key}", getattr(guard, key), least)
    if guard.window < guard.min_steps:
        raise ConfigError("guard.window", guard.window, f"must be at least guard.min_steps={guard.min_steps}")
    for key in ("zscore", "loss_ratio", "grad_norm_ratio"):
        at_least(f"guard.{key}", getattr(guard, key), 1)
    for key in ("start_minutes", "step_minutes", "eval_minutes", "save_minutes"):
        value = getattr(watchdog, key)
        if not value > 0:
            raise ConfigError(f"watchdog.{key}", value, "must be above 0; set a large number for no limit")
    for key in ("keep_best", "retries", "retry_seconds"):
        at_least(f"checkpoint.{key}", getattr(checkpoint, key), 0)
    check_choice("checkpoint.best_mode", checkpoint.best_mode)
    if checkpoint.keep_best:
        if not (config.data.eval_shards and config.eval.every_steps):
            raise ConfigError(
                "checkpoint.keep_best", checkpoint.keep_best, "needs data.eval_shards and eval.every_steps"
            )
        if checkpoint.every_steps and checkpoint.every_steps % config.eval.every_steps:
            raise ConfigError(
                "checkpoint.keep_best",
                checkpoint.keep_best,
                f"a checkpoint counts if it was evaluated at its own step: make checkpoint.every_steps="
                f"{checkpoint.every_steps} a multiple of eval.every_steps={config.eval.every_steps}",
            )


def _validate_schedules(config: Config) -> None:
    for section, keys in (
        ("checkpoint", ("every_steps", "keep_every_steps")),
        ("eval", ("every_steps", "figure_every_steps", "signal_every_steps")),
        ("probe", ("every_steps", "knn")),
    ):
        for key in keys:
            at_least(f"{section}.{key}", getattr(getattr(config, section), key), 0)
    at_least("checkpoint.keep_last", config.checkpoint.keep_last, 1)
    at_least("eval.figure_samples", config.eval.figure_samples, 1)
    if config.eval.max_samples is not None:
        at_least("eval.max_samples", config.eval.max_samples, 1)
    if config.eval.signal_every_steps and not config.data.eval_shards:
        raise ConfigError(
            "eval.signal_every_steps",
            config.eval.signal_every_steps,
            "there are no images to measure the signal with: set data.eval_shards",
        )
    at_least("tracking.log_every_steps", config.tracking.log_every_steps, 1)
    check_choice("tracking.wandb", config.tracking.wandb)
    for tag in config.tracking.wandb_tags:
        if not 1 <= len(tag) <= 64:
            raise ConfigError("tracking.wandb_tags", tag or "''", "W&B accepts tags of 1 to 64 characters")
    peak = config.tracking.peak_tflops
    if peak is not None and not peak > 0:
        fix = "must be above 0: the TFLOPS of one device, such as 312 for an A100 in bf16"
        raise ConfigError("tracking.peak_tflops", peak, fix)
    check_resume(config.resume)
    check_choice("launch.device", config.launch.device)
    _validate_launch(config.launch)
    if not config.run.dir:
        raise ConfigError("run.dir", config.run.dir, "set the directory of the run")


def _validate_init(config: Config) -> None:
    check_choice("init.which", config.init.which)
    if config.init_from is not None and not config.init_from:
        raise ConfigError("init_from", "''", "set a run, a checkpoint, or a file; null for none")
    if config.init_from is None:
        for key, unset in (("which", "newest"), ("ema", False), ("label_map", None)):
            if getattr(config.init, key) != unset:
                raise ConfigError(f"init.{key}", getattr(config.init, key), "has no effect, because init_from is null")
    if config.init.label_map is not None and config.task.classes is None:
        fix = f"is for classification and other tasks with classes; task={config.task.name} has no classes"
        raise ConfigError("init.label_map", config.init.label_map, fix)


def _validate_probe(config: Config) -> None:
    probe = config.probe
    at_least("probe.max_samples", probe.max_samples, 2)
    if bool(probe.shards) != bool(probe.eval_shards):
        missing = "eval_shards" if probe.shards else "shards"
        raise ConfigError(
            f"probe.{missing}", "''", "probes learn from probe.shards and are scored on probe.eval_shards"
        )
    if not probe.shards and probe.every_steps:
        raise ConfigError("probe.every_steps", probe.every_steps, "there is nothing to probe with: set probe.shards")
    if probe.shards and not (probe.knn or probe.linear):
        raise ConfigError("probe.knn", 0, "with probe.linear=false nothing is measured; switch one of them on")


def _validate_launch(launch: LaunchConfig) -> None:
    for key in ("master_port", "ssh_port"):
        port = getattr(launch, key)
        if port is not None and not 0 < port < 65536:
            raise ConfigError(f"launch.{key}", port, "must be a port from 1 to 65535")
    if launch.nproc_per_node is not None:
        at_least("launch.nproc_per_node", launch.nproc_per_node, 1)
        if launch.hostfile:
            hint = "the slots in launch.hostfile already set the number of ranks per host; remove one of the two"
            raise ConfigError("launch.nproc_per_node", launch.nproc_per_node, hint)
    for key, unit in (("gpu_memory_gib", "GiB of one GPU"), ("bus_gb_s", "GB/s of an all-reduce")):
        value = getattr(launch, key)
        if value is not None and not value > 0:
            raise ConfigError(f"launch.{key}", value, f"must be above 0: the {unit}")
    if launch.gpu_memory_gib is not None and launch.device == "cpu":
        raise ConfigError("launch.gpu_memory_gib", launch.gpu_memory_gib, "has no effect with launch.device=cpu")
    for key in ("ssh_port", "master_addr"):
        if getattr(launch, key) is not None and not launch.hostfile:
            raise ConfigError(f"launch.{key}", getattr(launch, key), "requires launch.hostfile, which is not set")


def _validate_best_metric(config: Config) -> None:
    metric, mode = config.checkpoint.best_metric, config.checkpoint.best_mode
    if better_end(metric):
        checked_mode(metric, mode)
    if config.checkpoint.keep_best:
        _check_reported(config, "checkpoint.best_metric", metric)


def _check_reported(config: Config, key: str, metric: str) -> None:
    """Check that every evaluation reports a metric; probe metrics exist only at steps that probe."""
    probe, every = config.probe, config.eval.every_steps
    if not metric.startswith(PROBED):
        given = evaluated_metrics(config)
        if config.data.eval_shards and metric not in given:
            raise ConfigError(key, metric, f"no evaluation reports it; use one of {', '.join(given)}")
        return
    if not probe.shards:
        raise ConfigError(key, metric, "there is nothing to probe with: set probe.shards")
    known = probed_metrics(config)
    if metric not in known:
        raise ConfigError(key, metric, f"as configured, the probes report {' and '.join(known)}")
    if not probe.every_steps or every % probe.every_steps:
        raise ConfigError(
            "probe.every_steps",
            probe.every_steps,
            f"{key}={metric} needs a probe at every evaluation: set {every}, like eval.every_steps, or a divisor of it",
        )


def _validate_early_stopping(config: Config) -> None:
    stopping = config.eval.early_stopping
    at_least("eval.early_stopping.patience", stopping.patience, 1)
    at_least("eval.early_stopping.min_delta", stopping.min_delta, 0)
    if stopping.metric is None:
        return
    key = "eval.early_stopping.metric"
    if not config.eval.every_steps or not (config.data.eval_shards or config.launch.dry_run):
        hint = "the run evaluates nothing: set data.eval_shards and eval.every_steps"
        raise ConfigError(key, stopping.metric, hint)
    _check_reported(config, key, stopping.metric)
    if better_end(stopping.metric) is None:
        raise ConfigError(key, stopping.metric, "it is not known which of its values are better; use another metric")


def _refuse_infinite(config: Config) -> None:
    """Reject nan everywhere, and infinity unless it turns off a guard test."""
    for key, value in flat(config).items():
        values = value if isinstance(value, (list, tuple)) else [value]
        for number in values:
            if not isinstance(number, float) or math.isfinite(number):
                continue
            if math.isnan(number) or number < 0 or key not in MAY_BE_INFINITE:
                raise ConfigError(key, value, "must be a finite number")


def validate(config: Config) -> None:
    """Check everything that needs neither data nor devices.

    Raises:
        ConfigError: for the first error.
    """
    _refuse_infinite(config)
    validate_model(config.model)
    stage_geometry(config.model, *resolution(config))
    one_of("task.name", config.task.name, tuple(TASK_SECTIONS))
    check_clips(config)
    config.task.validate(config)
    validate_data(config)
    validate_optim(config.optim)
    _validate_run(config)
    _validate_engine(config)
    _validate_safety(config)
    _validate_schedules(config)
    _validate_init(config)
    _validate_probe(config)
    _validate_best_metric(config)
    _validate_early_stopping(config)
