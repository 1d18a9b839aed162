"""Files of weights in the layouts of the public releases.

Those called released have every name and shape of the real file; a tensor that nobody computes with is a single value
in storage. The small ones, with 8 channels, are for tests that compare numbers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swinv2_train.config.model import ModelConfig, stage_geometry, variant
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
    """Return the content of an official supervised file."""
    model = ModelConfig(depths=[2, 2, depth, 2], **{**SMALL, **fields})
    return {"model": {**official_buffers(model, resolution), **_weights(classes, depth)}}


@functools.cache
def _weights(classes: int, depth: int) -> dict[str, Tensor]:
    return canonical(ImageClassifier(ModelConfig(depths=[2, 2, depth, 2], **SMALL), classes))


def official_simmim_file(**fields: Any) -> dict[str, Any]:
    """Return the content of a released SimMIM file: `encoder.` and `rpe_mlp`, no buffers."""
    model = ModelConfig(depths=[2, 2, 2, 2], **{**SMALL, **fields})
    named = FORMATS["official"].write(canonical(MaskedImageModel(model)), model)
    return {"model": {key.replace("cpb_mlp", "rpe_mlp"): value for key, value in named.items()}}


def _hollow(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of these shapes, each with one value of its own in storage."""
    return {key: torch.full((1,), 1.0 + number).expand(shape) for number, (key, shape) in enumerate(shapes.items())}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def released_file(size: str, resolution: int, classes: int, **fields: Any) -> dict[str, Any]:
    """Return the content of a released supervised file: weights and buffers of a size such as swinv2_tiny."""
    model = variant(size, **fields)
    with torch.device("meta"):
        weights = ImageClassifier(model, classes)
    return {"model": {**official_buffers(model, resolution), **_hollow(_shapes(canonical(weights)))}}


def released_simmim_file() -> dict[str, Any]:
    """Return the content of the released SimMIM file of SwinV2-B: `encoder.` and `rpe_mlp`, no buffers."""
    model = variant("swinv2_base", window=12)
    with torch.device("meta"):
        weights = MaskedImageModel(model)
    shapes = _shapes(FORMATS["official"].write(canonical(weights), model))
    return {"model": _hollow({key.replace("cpb_mlp", "rpe_mlp"): shape for key, shape in shapes.items()})}


def released_v1_file() -> dict[str, Any]:
    """Return the content of swin_tiny_patch4_window7_224.pth, a Swin Transformer V1: 96 channels, window 7, 224
    pixels."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (96, 3, 4, 4)}
    shapes |= dict.fromkeys(("patch_embed.proj.bias", "patch_embed.norm.weight", "patch_embed.norm.bias"), (96,))
    for stage, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
        dim, place = 96 * 2**stage, f"layers.{stage}."
        for block in range(depth):
            own = f"{place}blocks.{block}."
            if block % 2 and stage < 3:
                shapes[f"{own}attn_mask"] = (64 // 4**stage, 49, 49)
            shapes |= {
                f"{own}attn.relative_position_bias_table": (169, heads),
                f"{own}attn.relative_position_index": (49, 49),
                f"{own}attn.qkv.weight": (3 * dim, dim),
                f"{own}attn.qkv.bias": (3 * dim,),
                f"{own}attn.proj.weight": (dim, dim),
                f"{own}attn.proj.bias": (dim,),
                f"{own}mlp.fc1.weight": (4 * dim, dim),
                f"{own}mlp.fc1.bias": (4 * dim,),
                f"{own}mlp.fc2.weight": (dim, 4 * dim),
                f"{own}mlp.fc2.bias": (dim,),
            }
            shapes |= {f"{own}{norm}.{part}": (dim,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        if stage < 3:
            shapes[f"{place}downsample.reduction.weight"] = (2 * dim, 4 * dim)
            shapes |= dict.fromkeys((f"{place}downsample.norm.weight", f"{place}downsample.norm.bias"), (4 * dim,))
    shapes |= {"norm.weight": (768,), "norm.bias": (768,), "head.weight": (1000, 768), "head.bias": (1000,)}
    return {"model": _hollow(shapes)}


def mmpretrain_key(name: str) -> str:
    """The key of a canonical name in mmpretrain, from the description of its layout."""
    if name.startswith("head."):
        return name.replace("head.", "head.fc.")
    if name.startswith("norm."):
        return f"backbone.{name.replace('norm.', 'norm3.')}"
    name = name.replace("patch_embed.proj.", "patch_embed.projection.")
    name = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"stages.{int(found[1]) + 1}.downsample", name)
    name = name.replace("layers.", "stages.").replace(".attn.", ".attn.w_msa.").replace("enorm", "norm3")
    return "backbone." + name.replace("mlp.fc1.", "ffn.layers.0.0.").replace("mlp.fc2.", "ffn.layers.1.")
