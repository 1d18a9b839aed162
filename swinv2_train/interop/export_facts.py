"""Facts about a model that an export records for its readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.identity import CLIP_MODEL_KEYS
from swinv2_train.config.checks import resolution
from swinv2_train.config.compose import to_dict
from swinv2_train.config.values import value_settings
from swinv2_train.interop.input_check import recorded_bits
from swinv2_train.interop.metadata import CLIP_KEYS

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.load import LoadedModel

_TRAINING_ONLY = ("attention", "sequential_chunk_mib", "checkpointing", "drop_path")


def exported_metadata(loaded: LoadedModel) -> dict[str, Any]:
    """Return what a reader must know about the weights, in the sections of a checkpoint's manifest."""
    config = loaded.config
    unused = (*_TRAINING_ONLY, *(() if config.model.temporal_patch else CLIP_MODEL_KEYS))
    return {
        "task": to_dict(config.task),
        "model": {key: value for key, value in to_dict(config.model).items() if key not in unused},
        "data": {"resolution": list(resolution(config)), "mean": loaded.mean, "std": loaded.std, **clip_facts(config)},
        "classes": loaded.class_names,
        "preprocess": preprocess_facts(loaded),
    }


def clip_facts(config: Config) -> dict[str, int]:
    """Return the settings of the clips; empty for images."""
    return {key: getattr(config.data, key) for key in CLIP_KEYS} if config.data.frames else {}


def preprocess_facts(loaded: LoadedModel, bits: list[int] | None = None) -> dict[str, Any]:
    """Return the preparation of images, without settings that this model does not use."""
    data = loaded.config.data
    known = {
        "crop_pct": data.crop_pct if data.crop_mode == "center" else None,
        "crop_mode": data.crop_mode,
        "interpolation": data.augment.interpolation,
        "mean": loaded.mean,
        "std": loaded.std,
        "bits": bits or recorded_bits(loaded),
        "background": data.background,
        **value_settings(data),
    }
    return {key: value for key, value in known.items() if value is not None}
