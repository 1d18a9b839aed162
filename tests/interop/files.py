"""Files of weights in the layouts of the public releases, with small random tensors under the real names."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from swinv2_train.config.model import ModelConfig, stage_geometry
from swinv2_train.interop.names import FORMATS
from swinv2_train.models import ImageClassifier, MaskedImageModel
from swinv2_train.models.geometry import relative_coordinates
from tests.models.golden import fill_parameters, golden_config

SMALL = {"embed_dim": 8, "num_heads": [1, 2, 4, 8], "drop_path": 0.0}
"""A model that is small in everything but its names."""


def classifier(num_classes: int = 5, **fields: Any) -> ImageClassifier:
    """A classifier with values by formula, in eval mode."""
    model = ImageClassifier(golden_config(**fields), num_classes).eval()
    fill_parameters(model)
    return model


def masked_model(**fields: Any) -> MaskedImageModel:
    """A SimMIM model with values by formula, in eval mode."""
    model = MaskedImageModel(golden_config(**fields)).eval()
    fill_parameters(model)
    return model


def canonical(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of one of our models under canonical names."""
    return FORMATS["swinv2-train"].read(model.state_dict())


def official_buffers(model: ModelConfig, resolution: int) -> dict[str, Tensor]:
    """The buffers of an official file, in their places and shapes; those that nobody reads hold a single value."""
    found: dict[str, Tensor] = {}
    given = model.pretrained_window if isinstance(model.pretrained_window, list) else [model.pretrained_window] * 4
    for index, stage in enumerate(stage_geometry(model, resolution, resolution)):
        side = stage.window[0]
        table = relative_coordinates((side, side), (given[index], given[index]), torch.device("cpu"))
        tokens = side * side
        for block in range(stage.depth):
            place = f"layers.{index}.blocks.{block}."
            if block % 2 and stage.shift[0]:
                found[f"{place}attn_mask"] = torch.zeros(1).expand(stage.num_windows, tokens, tokens)
            found[f"{place}attn.relative_coords_table"] = table.reshape(1, 2 * side - 1, 2 * side - 1, 2)
            index_table = torch.zeros(1, dtype=torch.int64).expand(tokens, tokens)
            found[f"{place}attn.relative_position_index"] = index_table
    return found


def official_file(resolution: int, classes: int = 10, depth: int = 2, **fields: Any) -> dict[str, Any]:
    """What an official supervised file holds."""
    model = ModelConfig(depths=[2, 2, depth, 2], **{**SMALL, **fields})
    return {"model": {**official_buffers(model, resolution), **_weights(classes, depth)}}


@functools.cache
def _weights(classes: int, depth: int) -> dict[str, Tensor]:
    return canonical(ImageClassifier(ModelConfig(depths=[2, 2, depth, 2], **SMALL), classes))


def official_simmim_file(**fields: Any) -> dict[str, Any]:
    """What a released SimMIM file holds: `encoder.` and `rpe_mlp`, no buffers."""
    model = ModelConfig(depths=[2, 2, 2, 2], **{**SMALL, **fields})
    named = FORMATS["official"].write(canonical(MaskedImageModel(model)), model)
    return {"model": {key.replace("cpb_mlp", "rpe_mlp"): value for key, value in named.items()}}


def v1_file() -> dict[str, Any]:
    """The keys that tell a Swin Transformer V1."""
    place = "layers.0.blocks.0.attn."
    keys = ["patch_embed.proj.weight", f"{place}relative_position_bias_table", f"{place}qkv.weight", f"{place}qkv.bias"]
    return {"model": {key: torch.zeros(4, 4) for key in [*keys, "layers.0.downsample.reduction.weight", "norm.weight"]}}
