"""Fill in values that a config leaves to the data or to the weights that the run starts from.

If the run has already begun, its own checkpoints contain the values: a resume needs neither the source of the weights
nor its original content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.identity import EARLIER_BACKGROUND
from swinv2_train.config.checks import resolution
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import (
    ModelConfig,
    pretrained_temporal_windows,
    pretrained_windows,
    set_temporal_windows,
    table_windows,
)
from swinv2_train.config.order import fill_in_order
from swinv2_train.config.schema import Config
from swinv2_train.data.card import Card
from swinv2_train.data.channel_statistics import check_channels
from swinv2_train.data.errors import DataError
from swinv2_train.data.label_map import NAMES, NUMBERS, match_names, read_label_map
from swinv2_train.data.value_range import fill_in_scale
from swinv2_train.engine.identity import saved_metadata
from swinv2_train.engine.origin import check_origin, origin_of
from swinv2_train.interop.metadata import (
    Window,
    model_config,
    plain_windows,
    put_trained,
    put_trained_lengths,
    trained_windows,
)
from swinv2_train.interop.source import WeightSource, open_source
from swinv2_train.interop.structure import check_structure
from swinv2_train.interop.transfer import shares_head
from swinv2_train.tasks.classes import names_of_classes
from swinv2_train.text import counted


def complete(config: Config, card: Card | None, *, weights: bool = True) -> Config:
    """Set `model.pretrained_window`, `data.background`, percentiles in `data.scale`, and the open fields of the order
    and of the task; reject weights that cannot fit.

    Args:
        config: not frozen; changed in place.
        card: that of the training data; None if there is none.
        weights: False: ignore the weights of `init_from`, which do not exist yet.

    Returns:
        The config.

    Raises:
        ConfigError: if a value remains unknown, if the model reads none of the images, or if the weights of `init_from`
            belong to another model.
        CheckpointError, DataError: if the weights or the label map cannot be read.
    """
    check_origin(config)
    place = origin_of(config)
    begun = saved_metadata(place.run_dir, config, place.step)
    if config.data.background is None:
        config.data.background = "white" if begun is None else _saved(begun, "data", "background") or EARLIER_BACKGROUND
    begun_scale = _saved(begun, "data", "scale")
    if isinstance(config.data.scale, str) and begun_scale is not None:
        config.data.scale = begun_scale
    if begun is None and config.data.image is None:  # the card describes the first image of each sample
        check_channels(card, config.model.in_channels)
    fill_in_scale(config.data, card, config.model.in_channels)
    fill_in_order(config, None if begun is None else begun.get("order", {}))
    config.task.complete((begun or {}).get("task", {}), card)
    if begun is not None:
        keep_windows(config.model, begun)
        return config
    if config.init_from and weights and not config.replay:  # the config of a replay is complete
        with _opened(config) as source:
            check_structure(source, config.model)
            _take_windows(config, source)
            read_map(config, source, names_of_classes(config, card))
    elif config.task.SIZES_DIFFER and not config.init_from and not all(map(all, pretrained_windows(config.model))):
        # Windows that are clamped to the maps of training keep their position bias on the larger maps of an evaluation.
        config.model.pretrained_window = plain_windows(table_windows(config.model, resolution(config)))
    return config


def _opened(config: Config) -> WeightSource:
    try:
        return open_source(config.init_from or "", which=config.init.which, ema=config.init.ema)
    except ConfigError as error:
        if error.key:
            raise
        raise ConfigError("init_from", config.init_from, error.hint) from error
    except OSError as error:
        raise ConfigError("init_from", config.init_from, f"cannot be read ({error.strerror})") from error
    except CheckpointError as error:
        raise CheckpointError(f"init_from={config.init_from}: {error}") from error


def read_map(config: Config, source: WeightSource, class_names: Sequence[str] | None) -> list[int] | None:
    """Return the label map of `init.label_map`: the source's class for each class of the run; None without one.

    Args:
        class_names: those of the run, one for every class; None without names.

    Raises:
        ConfigError: if the source has no head, or if the map has a different number of classes.
        DataError: if it cannot be read.
    """
    path = config.init.label_map
    if path is None:
        return None
    if not source.num_classes:
        raise ConfigError("init.label_map", path, f"{source.path} has no classes whose rows could be used")
    if not shares_head(source, config.task):
        hint = (
            f"{source.path} is of task={source.metadata['task']['name']}, whose head task={config.task.name} cannot use"
        )
        raise ConfigError("init.label_map", path, f"{hint}; set it to null")
    if path == NAMES:
        try:
            return match_names(class_names, source.class_names, source.num_classes)
        except DataError as error:
            raise ConfigError("init.label_map", path, str(error).replace(" label_map=", " init.label_map=")) from error
    if path == NUMBERS:
        if source.num_classes != config.task.classes:
            hint = f"{source.path} has {source.num_classes} classes, and the run {config.task.classes}"
            raise ConfigError("init.label_map", path, f"uses class n for class n, but {hint}")
        return list(range(source.num_classes))
    mapped = read_label_map(Path(path), source.num_classes)
    if len(mapped) != config.task.classes:
        lines = counted(len(mapped), "line")
        hint = f"has {lines} for task.num_classes={config.task.classes}; it needs one for each class"
        raise ConfigError("init.label_map", path, hint)
    return mapped


def _saved(metadata: dict[str, Any] | None, section: str, key: str) -> Any:
    return (metadata or {}).get(section, {}).get(key)


def keep_windows(model: ModelConfig, begun: dict[str, Any]) -> None:
    """Take the pretrained windows of a run that has begun if those of the config are the same or left open."""
    saved = begun.get("model", {})
    known = model_config(begun)
    before = pretrained_windows(known)
    if put_trained(pretrained_windows(model), before) == before:
        model.pretrained_window = saved.get("pretrained_window") or 0
    lengths = set_temporal_windows(known)
    if put_trained_lengths(set_temporal_windows(model), lengths) == lengths:
        model.pretrained_temporal_window = saved.get("pretrained_temporal_window") or 0


def _take_windows(config: Config, source: WeightSource) -> None:
    """Record the windows that the weights were trained with if the config leaves them open; reject contradictions."""
    given = pretrained_windows(config.model)
    trained = trained_windows(source.metadata)
    if trained is None and not all(map(all, given)):
        hint = (
            f"no file records the window that the weights in {source.path} were trained with; set it, for example "
            "model.pretrained_window=[12,12,12,6] for window 12 at 192 pixels"
        )
        raise ConfigError("model.pretrained_window", config.model.pretrained_window, hint)
    taken = given if trained is None else put_trained(given, trained)
    if trained not in (None, taken):
        hint = (
            f"the weights in {source.path} were trained with {_written(trained or [])}; model.pretrained_window=0 uses "
            "the windows of the source"
        )
        raise ConfigError("model.pretrained_window", _written(given), hint)
    if trained is not None:
        config.model.pretrained_window = plain_windows(taken)
    _take_temporal_window(config, source)


def _take_temporal_window(config: Config, source: WeightSource) -> None:
    """Do the same for the window along time, if the weights are of clips."""
    there = model_config(source.metadata)
    if not there.temporal_patch or not config.model.temporal_patch:
        return
    given, trained = config.model.pretrained_temporal_window, pretrained_temporal_windows(there)
    if put_trained_lengths(set_temporal_windows(config.model), trained) != trained:
        hint = (
            f"the weights in {source.path} were trained with {str(trained).replace(' ', '')}; "
            "model.pretrained_temporal_window=0 uses the windows of the source"
        )
        raise ConfigError("model.pretrained_temporal_window", given, hint)
    config.model.pretrained_temporal_window = trained


def _written(windows: list[Window]) -> str:
    """Return windows in command-line syntax."""
    return str(plain_windows(windows)).replace(" ", "")
