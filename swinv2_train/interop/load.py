"""Loader of finished weights, used by evaluation, prediction, export, and analysis."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.clips import check_clips
from swinv2_train.config.compose import override, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, pretrained_windows, set_temporal_windows, stage_geometry
from swinv2_train.config.plugins import import_recorded
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TaskConfig, task_section
from swinv2_train.config.validate import validate_data
from swinv2_train.config.validate_model import validate_model
from swinv2_train.config.values import VALUE_KEYS
from swinv2_train.config.window_scale import TEST_WINDOW, with_test_window
from swinv2_train.interop.metadata import (
    CLIP_KEYS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    keep_temporal_window,
    model_config,
    plain_windows,
    put_trained,
    put_trained_lengths,
    trained_windows,
)
from swinv2_train.interop.source import OWN, WeightSource, open_source
from swinv2_train.interop.transfer import Transfer, plan_transfer
from swinv2_train.reading import UnreadableError, finite_number, from_object

if TYPE_CHECKING:
    from torch import nn


@dataclass
class LoadedModel:
    """A model with its weights and everything needed to use it."""

    model: nn.Module
    """Model of its task, with the head: eval mode, fp32, CPU."""
    config: Config
    """Sections `model`, `task`, and the input part of `data`, from the source and then from the overrides."""
    mean: list[float]
    std: list[float]
    """Per-channel mean and standard deviation in [0, 1] that normalize images."""
    class_names: list[str] | None
    source: WeightSource


def load_model(
    spec: str | Path, overrides: Sequence[str] = (), *, which: str = "newest", ema: bool = False
) -> LoadedModel:
    """Load weights from any source into the model they are for.

    Memory holds the model and at most one more tensor (for a torch file, in addition to what the system maps).

    Args:
        spec, which, ema: see `open_source`; the hashes of a checkpoint are compared.
        overrides: `key=value` over the values of the source, such as `model.window=24` or `data.resolution=384`, and
            `test_window=N`, see `source_config`. With another window, the position bias still uses the windows of the
            training.

    Raises:
        ConfigError: on a wrong override, or if the source is not a complete model or does not describe all of it.
        CheckpointError: if the source is damaged.
    """
    from swinv2_train.models.state import state_shapes

    with open_source(spec, which=which, ema=ema, verify=True) as source:
        config = source_config(source, overrides)
        size = resolution(config)
        check_peer(source, config, overrides)
        model = meta_model(config, size)
        shapes = state_shapes(model)
        transfer = plan_transfer(source, shapes, config.model, resolution=size, task=config.task)
        if missing := transfer.of("new"):
            if source.format != OWN and not source.num_classes and config.task.classes is not None:
                hint = (
                    f"{source.path} is a backbone without a head (a segmenter that was exported to timm or huggingface "
                    "has no decoder); use the run that it was exported from, or start a training from it"
                )
                raise ConfigError("", source.path, f"{hint} with init_from={source.path}")
            _refuse_changes(source, config, overrides, missing[0].key)
            hint = f"{source.path} has no {missing[0].key} that fits ({missing[0].detail}); start a training from it"
            raise ConfigError("", source.path, f"{hint} with init_from={source.path}")
        _fill(model.to_empty(device="cpu"), transfer)
    mean, std = _statistics(config)
    return LoadedModel(model.eval(), config, mean, std, source.class_names, source)


def _refuse_changes(source: WeightSource, config: Config, overrides: Sequence[str], missing: str) -> None:
    """Reject a change to the model that weights cannot follow.

    Args:
        missing: first tensor that the weights do not have.

    Raises:
        ConfigError: for the first override of another value than that of the weights.
    """
    for key in (item.partition("=")[0] for item in overrides):
        section, _, name = key.partition(".")
        stored = source.metadata.get(section, {})
        if section not in ("model", "task") or name not in stored:
            continue
        now, before = getattr(getattr(config, section), name, None), stored[name]
        if now != before:
            hint = f"the weights in {source.path} are of {key}={before}, and have no {missing} that fits: omit {key}"
            raise ConfigError(key, now, f"{hint}, or start a training from them with init_from={source.path}")


def source_config(source: WeightSource, overrides: Sequence[str] = ()) -> Config:
    """Return the config for using weights: that of the source, changed by `key=value` overrides.

    Among them may be `test_window=N` (see `config.window_scale`): other attention windows, in proportion to those of
    the training in every stage.

    Raises:
        ConfigError: on a wrong override, or if neither the source nor an override specifies a required value.
    """
    metadata = source.metadata
    module = next((item.partition("=")[2] for item in overrides if item.startswith("task.module=")), None)
    source.notes += import_recorded(metadata.get("imports"))
    values = {**metadata.get("task", {}), **({"module": module} if module else {})}
    config = Config(task=_task(values, source.path), model=model_config(metadata))
    keep_temporal_window(config.model)
    overrides = with_test_window(config.model, overrides)
    trained = trained_windows(metadata)
    data, crop = metadata["data"], metadata.get("preprocess", {})
    for section, key in ((config.data.augment, "interpolation"), (config.data, "crop_pct"), (config.data, "crop_mode")):
        value = crop.get(key)
        if value is None:
            continue
        if not (isinstance(value, str) if key != "crop_pct" else finite_number(value) is not None):
            raise CheckpointError(f"{source.path} is damaged: its {key} is {reprlib.repr(value)}")
        setattr(section, key, value)
    # This package's weights without the entry were trained with alpha dropped; other libraries do not record it.
    config.data.background = crop.get("background") or ("drop" if source.format == OWN else "white")
    for key in VALUE_KEYS:
        if crop.get(key) is not None:
            setattr(config.data, key, crop[key])
    config.data.label = _label(data.get("label"), source.path)
    for key in CLIP_KEYS:
        setattr(config.data, key, data.get(key, getattr(config.data, key)))
    given = {item.partition("=")[0] for item in overrides}
    sides = data.get("resolution")
    known: dict[str, Any] = {
        "model.window": metadata["model"].get("window"),
        "data.resolution": sides,
        "model.pretrained_window": trained,
    }
    if sides:
        config.data.resolution = sides[0] if sides[0] == sides[1] else list(sides)
    for key in ("mean", "std"):
        value = _numbers(crop.get(key)) or _numbers(data.get(key)) or _named(key, data.get(key))
        known[f"data.{key}"] = value
        setattr(config.data, key, value or [0.0])
    _ask_for_the_rest(source, given, known)
    if config.task.classes is not None and source.num_classes:
        config.task.num_classes = source.num_classes  # type: ignore[attr-defined] # a task with classes has it
        if "task.num_classes" in given:
            hint = f"the head of {source.path} has {source.num_classes} classes, and no override changes that"
            value = next(item.partition("=")[2] for item in overrides if item.startswith("task.num_classes="))
            raise ConfigError("task.num_classes", value, hint)
    changed = override(to_yaml(config), overrides)
    for key, value in zip(("crop_pct", "crop_mode"), changed.task.fixed_crop(changed.data), strict=True):
        if f"data.{key}" not in given:
            setattr(changed.data, key, value)
    _validate(changed, source, given)
    if trained is not None:
        own = put_trained(pretrained_windows(changed.model), trained)
        changed.model.pretrained_window = plain_windows(own)
    if changed.model.temporal_patch and config.model.temporal_patch:
        set_here, known = (set_temporal_windows(each.model) for each in (changed, config))
        changed.model.pretrained_temporal_window = put_trained_lengths(set_here, known)
    return changed


def check_peer(source: WeightSource, config: Config, overrides: Sequence[str] = ()) -> None:
    """Compare the results of the library that weights come from with those of this package, at the geometry in use.

    A difference at the geometry of the files next to the weights is rejected, because the user expects their results.
    With `model.window` or `data.resolution` among the overrides it becomes a note of the source, because their results
    were not requested. A difference by an option of their model is always rejected.

    Raises:
        ConfigError: with the difference and the remedy.
    """
    from swinv2_train.interop.agreement import PACKAGES, disagreement, is_installed

    layout, model, size, theirs = source.format, config.model, resolution(config), source.peer_config or None
    if layout not in PACKAGES:
        return
    if not is_installed(layout):
        source.notes.append(
            f"{PACKAGES[layout]} is not installed, so its results were not compared with those of this package"
        )
        return
    given = {item.partition("=")[0] for item in overrides}
    changed = not given.isdisjoint((TEST_WINDOW, "model.window", "data.resolution", "model.pretrained_window"))
    reason = disagreement(layout, model, size, theirs, own_windows=changed)
    if not reason:
        return
    refusal = f"{source.path} would not produce the results of {layout}: {reason}"
    if theirs and disagreement(layout, model, size, theirs, own_windows=True) != disagreement(layout, model, size):
        raise ConfigError("", source.path, f"{refusal}, by an option in config.json that this package does not have")
    if not changed:
        shown = str(config.data.resolution).replace(" ", "")
        hint = f"use another data.resolution or model.window, or set data.resolution={shown} yourself to have it "
        raise ConfigError("data.resolution", shown, f"{refusal}; {hint}computed as this package does")
    source.notes.append(f"{reason}; it is computed as this package does")


def start_note(source: WeightSource, model: ModelConfig, size: tuple[int, int]) -> list[str]:
    """Return a line if a run starts from timm or Hugging Face weights at their geometry but computes it differently.

    Args:
        size: input (height, width) in pixels of the run.
    """
    from swinv2_train.interop.agreement import PACKAGES, disagreement, is_installed

    there, trained = model_config(source.metadata), source.metadata["data"].get("resolution")
    if source.format not in PACKAGES or not is_installed(source.format) or not source.metadata["model"].get("window"):
        return []
    if trained != list(size) or stage_geometry(there, *size) != stage_geometry(model, *size):
        return []  # another geometry: equal outputs are not expected
    reason = disagreement(source.format, model, size, source.peer_config or None)
    return (
        [f"the run does not start from the outputs that these weights have in {source.format}: {reason}"]
        if reason
        else []
    )


_UNTOLD = {
    "model.window": ("the attention window", "12"),
    "data.resolution": ("the input size", "192"),
    "model.pretrained_window": (
        "the windows it was trained with (0: those that model.window has at data.resolution)",
        "[12,12,12,6]",
    ),
    "data.mean": ("the mean of its images", "0.5"),
    "data.std": ("the standard deviation of its images", "0.25"),
}
"""Values that foreign weights may not record: (description, example); for `data`, the example of one channel."""


def _ask_for_the_rest(source: WeightSource, given: set[str], known: Mapping[str, Any]) -> None:
    missing = [key for key, value in known.items() if value is None and key not in given]
    if missing:
        what = ", nor ".join(_UNTOLD[key][0] for key in missing)
        channels = source.metadata["model"].get("in_channels", 3)
        shown = {key: f"[{','.join([_UNTOLD[key][1]] * channels)}]" for key in ("data.mean", "data.std")}
        examples = " ".join(f"{key}={shown.get(key, _UNTOLD[key][1])}" for key in missing)
        raise ConfigError(missing[0], "?", f"{source.path} does not record {what}; set it, for example {examples}")


def _validate(config: Config, source: WeightSource, given: set[str]) -> None:
    """Check the model and the input.

    Raises:
        ConfigError: naming the key, and the source if the value comes from there.
    """
    try:
        validate_model(config.model)
        check_clips(config)
        stage_geometry(config.model, *resolution(config), clip_frames(config))
        validate_data(config)
        config.task.check_prediction()
        config.task.check_evaluation(config)
        if isinstance(config.data.scale, str):
            hint = "percentiles are measured on training shards, and none are read here; set numbers, data.scale=[0,1]"
            raise ConfigError("data.scale", config.data.scale, hint)
        _statistics(config)
    except ConfigError as error:
        if error.key in given:
            raise
        raise ConfigError(error.key, error.value, f"set by {source.path}; {error.hint}") from error


def _task(values: Mapping[str, Any], path: Path) -> TaskConfig:
    try:
        section = task_section(values)
    except ConfigError as error:
        reason = f"{path} is of the task {values.get('name')}, which cannot be used here: {error}"
        raise ConfigError("", path, reason) from error
    try:
        return from_object(section, values)
    except UnreadableError as error:
        raise CheckpointError(f"{path} is damaged: of its task, {error}") from error


def _label(value: Any, path: Path) -> str | None:
    """Return where the shards of the training have their labels."""
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{path} is damaged: its data.label is {reprlib.repr(value)}")
    return value


def _numbers(value: Any) -> list[float] | None:
    return [float(each) for each in value] if isinstance(value, (list, tuple)) else None


def _named(key: str, value: Any) -> list[float] | None:
    return list(IMAGENET_MEAN if key == "mean" else IMAGENET_STD) if value == "imagenet" else None


def _statistics(config: Config) -> tuple[list[float], list[float]]:
    found = []
    for key in ("mean", "std"):
        value = getattr(config.data, key)
        numbers = _numbers(value) or _named(key, value)
        if numbers is None or len(numbers) != config.model.in_channels:
            hint = f"needs one number per channel, model.in_channels={config.model.in_channels}"
            raise ConfigError(f"data.{key}", value, hint)
        found.append(numbers)
    return found[0], found[1]


def meta_model(config: Config, size: tuple[int, int]) -> nn.Module:
    """Return the model of a config on the meta device: names and shapes, no memory.

    Args:
        size: input (height, width) in pixels.
    """
    import torch

    implementation = config.task.implementation()  # not below: tensors of a module that it imports would have no values
    with torch.device("meta"):
        return implementation.model_of(config, size)


def _fill(model: nn.Module, transfer: Transfer) -> None:
    import torch

    from swinv2_train.models.state import named_state

    with torch.no_grad():
        for name, tensor in named_state(model):
            value = transfer.tensor(name)
            assert value is not None  # nothing is new
            tensor.copy_(value)
