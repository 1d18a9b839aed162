"""Check that weights are of a model of the same size and kind. Torch-free."""

from __future__ import annotations

from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import NUM_STAGES, VARIANTS, ModelConfig, mlp_width
from swinv2_train.config.structure import structural_difference
from swinv2_train.interop.inflation import PATCHES
from swinv2_train.interop.metadata import model_config
from swinv2_train.interop.source import WeightSource


def check_structure(source: WeightSource, model: ModelConfig) -> None:
    """Reject weights of a model of another size or kind.

    Raises:
        ConfigError: naming the field, with the tensor and both shapes if a shape shows it, and the fix.
    """
    there = model_config(source.metadata)
    if name := structural_difference(there, model):
        before, now = getattr(there, name), getattr(model, name)
        if name == "absolute_position" and model.temporal_patch:
            hint = "have an absolute position embedding, which models of clips do not have; use others"
            raise ConfigError(f"model.{name}", _written(now), f"the weights in {source.path} {hint}")
        if name == "temporal_patch" and not now:
            hint = "are of clips, which no model of images can start from; use weights of images, or task=video"
            raise ConfigError("init_from", source.path, f"the weights in {source.path} {hint}")
        sizes = ("embed_dim", "depths", "num_heads")
        known = [key for key, fields in VARIANTS.items() if all(fields[f] == getattr(there, f) for f in sizes)]
        hint = f"take model={known[0]}" if known and name in sizes else f"set model.{name}={_written(before)}"
        shown = _shown(name, there, model) or f"model.{name}={_written(before)}"
        raise ConfigError(
            f"model.{name}", _written(now), f"the weights in {source.path} have {shown}; {hint}, or use others"
        )


def _shown(name: str, there: ModelConfig, model: ModelConfig) -> str:
    """Return a tensor that shows a difference, with both shapes."""
    stage = (
        next((s for s in range(NUM_STAGES) if getattr(there, name)[s] != getattr(model, name)[s]), 0)
        if (name in ("depths", "num_heads"))
        else 0
    )
    if name == "depths":
        return f"{there.depths[stage]} blocks in layers.{stage}.blocks, the model {model.depths[stage]}"
    shapes = {
        **dict.fromkeys(("embed_dim", "patch_size", "temporal_patch"), (PATCHES, _patch_shape)),
        "num_heads": (f"layers.{stage}.blocks.0.attn.logit_scale", lambda m: (m.num_heads[stage], 1, 1)),
        "mlp_ratio": ("layers.0.blocks.0.mlp.fc1.weight", lambda m: (mlp_width(m, m.embed_dim), m.embed_dim)),
    }
    if name not in shapes:
        return ""
    key, shape = shapes[name]
    return f"{key} of shape {shape(there)}, the model {shape(model)}"


def _patch_shape(model: ModelConfig) -> tuple[int, ...]:
    frames = (model.temporal_patch,) if model.temporal_patch else ()
    return (model.embed_dim, model.in_channels, *frames, model.patch_size, model.patch_size)


def _written(value: Any) -> str:
    """Return a value in command-line syntax."""
    return str(value).replace(" ", "").lower() if isinstance(value, (list, bool)) else str(value)
