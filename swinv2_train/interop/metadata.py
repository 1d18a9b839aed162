"""Metadata of weights, inferred from the tensors' shapes, the buffers, the config next to the file, and its name.

Metadata has the sections of a checkpoint's manifest: `task`, `model`, and `data` as in a config, `preprocess`, and
`classes`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import (
    NUM_STAGES,
    ModelConfig,
    fit_window,
    pretrained_temporal_windows,
    pretrained_windows,
    stage_geometry,
)
from swinv2_train.config.validate_model import validate_model
from swinv2_train.reading import UnreadableError, finite_number, from_object, is_count

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
CLIP_KEYS = ("frames", "frame_stride")
"""Keys of the section `data` that describe the clips of a model."""
_TORCHVISION = re.compile(r"swin_v2_([tsb])-[0-9a-f]{8}")
"""Names of torchvision's files, all for 256 pixels."""
_TORCHVISION_RESIZED = {"t": 260, "s": 260, "b": 272}
"""Pixels of the shorter side of an image before the center crop, by size of the model."""
Shapes = Mapping[str, tuple[int, ...]]
Window = tuple[int, int]


def plain_window(window: Window) -> int | list[int]:
    """Return a window in config notation: one side if both are equal."""
    return window[0] if window[0] == window[1] else list(window)


def plain_windows(windows: Sequence[Window]) -> list[int | list[int]]:
    """Return the windows of all stages in config notation."""
    return [plain_window(window) for window in windows]


def put_trained(given: Sequence[Window], trained: Sequence[Window]) -> list[Window]:
    """Return per stage the given training window, with sides that are 0 replaced by those of the known one."""
    return [(own[0] or known[0], own[1] or known[1]) for own, known in zip(given, trained, strict=True)]


def put_trained_lengths(given: Sequence[int], trained: Sequence[int]) -> list[int]:
    """Do the same for windows along time."""
    return [own or known for own, known in zip(given, trained, strict=True)]


def recorded_metadata(content: Any) -> dict[str, Any]:
    """Check the metadata that weights of this package record, section by section.

    Raises:
        UnreadableError: naming the section that is missing or has an invalid value.
    """
    if not isinstance(content, Mapping):
        raise UnreadableError("its metadata is missing")
    sections = ("task", "model", "data", "preprocess")
    known: dict[str, Any] = {
        key: dict(value) for key in sections if isinstance(value := content.get(key), Mapping) and value
    }
    for key in ("model", "data"):
        if key not in known:
            raise UnreadableError(f"its metadata is missing (it has no section {key})")
    try:
        validate_model(from_object(ModelConfig, known["model"]))
    except UnreadableError as error:
        raise UnreadableError(f"its metadata is damaged: model.{error}") from error
    except ConfigError as error:
        raise UnreadableError(f"its metadata is damaged: {error}") from error
    for key in CLIP_KEYS:
        if not is_count(count := known["data"].get(key, 0)):
            raise UnreadableError(f"its metadata is damaged: data.{key} is {reprlib.repr(count)}")
    sides = known["data"].get("resolution")
    if sides is not None and not (_is_list(sides, is_count) and len(sides) == 2 and all(sides)):
        raise UnreadableError(f"its metadata is damaged: data.resolution is {reprlib.repr(sides)}")
    for section in ("data", "preprocess"):
        for key in ("mean", "std"):
            value = known.get(section, {}).get(key)
            if not (value is None or isinstance(value, str) or _is_list(value, lambda x: finite_number(x) is not None)):
                raise UnreadableError(f"its metadata is damaged: {section}.{key} is {reprlib.repr(value)}")
    classes = content.get("classes")
    if not (classes is None or _is_list(classes, lambda name: isinstance(name, str))):
        raise UnreadableError(f"its metadata is damaged: classes is {reprlib.repr(classes)}")
    known["classes"] = classes
    known["imports"] = content.get("imports")
    return known


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def model_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Return the model section of metadata; keys of other versions are ignored, missing ones get their defaults."""
    known = {spec.name for spec in dataclasses.fields(ModelConfig)}
    return ModelConfig(**{key: value for key, value in metadata.get("model", {}).items() if key in known})


def trained_windows(metadata: Mapping[str, Any]) -> list[Window] | None:
    """Return per stage the window whose offsets the position bias was trained on, clamped to the maps of that training.

    Returns:
        None if the metadata does not record it.
    """
    if not metadata.get("model", {}).get("window"):
        return None
    model = model_config(metadata)
    given = pretrained_windows(model)
    if all(height and width for height, width in given):
        return given
    resolution = metadata.get("data", {}).get("resolution")
    if not resolution:
        return None
    used = [stage.window for stage in stage_geometry(model, *resolution)]
    return put_trained(given, used)


def keep_temporal_window(model: ModelConfig) -> None:
    """Record the window along time that the weights of clips were trained with, before another one is set for use."""
    if model.temporal_patch:
        model.pretrained_temporal_window = pretrained_temporal_windows(model)


def infer_model(shapes: Shapes, path: Path) -> dict[str, Any]:
    """Return the fields of a model that its canonical tensors determine: all except windows, their rule, and fields
    without weights.

    Raises:
        ConfigError: if they do not belong to a Swin Transformer V2.
    """
    refuse_other_models(shapes, path)
    depths, heads = [], []
    for stage in range(NUM_STAGES):
        depth = 0
        while f"layers.{stage}.blocks.{depth}.attn.qkv.weight" in shapes:
            depth += 1
        if not depth:
            raise ConfigError(
                "", path, f"{path} has no blocks in stage {stage + 1}: it is not a complete Swin Transformer V2"
            )
        depths.append(depth)
        heads.append(_num_heads(shapes, f"layers.{stage}.blocks.0.attn.", path))
    dim, channels, patch, _ = shapes["patch_embed.proj.weight"]
    hidden = shapes.get("layers.0.blocks.0.mlp.fc1.weight", (4 * dim,))[0]
    first = "layers.0.blocks.0.attn."
    return {
        "name": path.stem,
        "in_channels": channels,
        "patch_size": patch,
        "embed_dim": dim,
        "depths": depths,
        "num_heads": heads,
        "mlp_ratio": hidden / dim,
        **_extra_norms(shapes, depths, path),
        "absolute_position": "absolute_pos_embed" in shapes,
        "similarity": "cosine" if f"{first}logit_scale" in shapes else "dot",
        "position_bias": "table" if f"{first}relative_position_bias_table" in shapes else "log-cpb",
    }


def refuse_other_models(shapes: Shapes, path: Path, patch_dimensions: Sequence[int] = (4,)) -> None:
    """Reject weights that do not belong to a Swin Transformer V2.

    Args:
        patch_dimensions: possible numbers of dimensions of the patch embedding: 4 for images, 5 for clips.

    Raises:
        ConfigError: naming the model that they look like.
    """
    block = "layers.0.blocks.0.attn."
    if f"{block}relative_position_bias_table" in shapes and f"{block}qkv.bias" in shapes:
        hint = (
            "contains a Swin Transformer V1 (bias tables, no logit_scale), whose weights do not fit V2; use a V2 file"
        )
        raise ConfigError("", path, f"{path} {hint}")
    if any(key.startswith("stages.0.blocks.0.") and ".meta_mlp." in key for key in shapes):
        hint = "contains timm's swinv2_cr, another model with other arithmetic; use a swinv2_*_window* file"
        raise ConfigError("", path, f"{path} {hint}")
    if any(key.startswith("features.1.0.attn.") for key in shapes):
        hint = "contains torchvision's Swin Transformer V1, whose weights do not fit V2; use a swin_v2_* file"
        raise ConfigError("", path, f"{path} {hint}")
    if 0 in shapes.get("patch_embed.proj.weight", ()):
        hint = "DeepSpeed divides the weights among several files with ZeRO stage 3; join them with its zero_to_fp32.py"
        raise ConfigError("", path, f"{path} has tensors without elements; {hint}")
    missing = [key for key in ("patch_embed.proj.weight", f"{block}qkv.weight", "norm.weight") if key not in shapes]
    if missing or len(shapes["patch_embed.proj.weight"]) not in patch_dimensions:
        held = ", ".join(list(shapes)[:3]) or "nothing"
        key = missing[0] if missing else "patch_embed.proj.weight of 4 dimensions"
        raise ConfigError("", path, f"{path} is not a Swin Transformer V2: it lacks {key} (it has {held}, ...)")
    scalar = next((key for key, shape in shapes.items() if not shape), None)
    if scalar is not None:
        raise ConfigError("", path, f"{path} is not a Swin Transformer V2: its {scalar} has no dimensions")


def _num_heads(shapes: Shapes, place: str, path: Path) -> int:
    for key, dimension in (("logit_scale", 0), ("cpb_mlp.2.weight", 0), ("relative_position_bias_table", 1)):
        if f"{place}{key}" in shapes:
            return shapes[f"{place}{key}"][dimension]
    raise ConfigError(
        "", path, f"{path} has no {place}logit_scale, nor a position bias, to determine the number of heads"
    )


def _extra_norms(shapes: Shapes, depths: list[int], path: Path) -> dict[str, Any]:
    """Return `extra_norm_period` and `extra_norm_stage`; the latter only if no period alone explains the norms."""
    blocks = {(stage, block) for stage, depth in enumerate(depths) for block in range(depth)}
    present = {(s, b) for s, b in blocks if f"layers.{s}.blocks.{b}.enorm.weight" in shapes}
    ends = {(stage, depth - 1) for stage, depth in enumerate(depths)}
    for at_ends in (False, True):
        others = present - ends if at_ends else present
        period = min((block for _, block in others), default=-1) + 1
        regular = {(s, b) for s, b in blocks if period and (b + 1) % period == 0} | (ends if at_ends else set())
        if present == regular:
            return {"extra_norm_period": period, "extra_norm_stage": at_ends}
        if not ends <= present:
            break
    stage, block = min(present ^ regular)
    there = "there is one" if (stage, block) in present else "there is none"
    hint = f"the extra norms are not every {period} blocks of a stage: {there} in layers.{stage}.blocks.{block}"
    raise ConfigError("", path, f"{path}: {hint}")


@dataclasses.dataclass
class Windows:
    """Windows and input size of foreign weights, as far as they are known."""

    window: list[Window] | None = None
    pretrained: list[Window] | None = None
    """Windows of an earlier training than that of these weights."""
    resolution: tuple[int, int] | None = None
    origin: str = ""
    """Source of this information, for display."""


def windows_from_buffers(
    shapes: Shapes, read: Callable[[str], list[float]], depths: list[int], patch: int
) -> Windows | None:
    """Return the windows from the buffers of official files: the size of the coordinate table is the window, its
    largest value determines the pretraining window, and the shift mask of the first stage determines the image size.

    Args:
        shapes: shapes of all tensors, including buffers, under canonical names.
        read: returns a tensor as a flat list.
        depths: blocks per stage.
        patch: pixels per token.
    """
    found: list[Window] = []
    before: list[Window] = []
    for stage in range(len(depths)):
        name = f"layers.{stage}.blocks.0.attn.relative_coords_table"
        if len(shapes.get(name, ())) != 4 or 0 in shapes[name] or shapes[name][3] != 2:
            return None
        _, rows, columns, _ = shapes[name]
        window = ((rows + 1) // 2, (columns + 1) // 2)
        found.append(window)
        last = read(name)[-2:]
        before.append((_trained_side(window[0], last[0]), _trained_side(window[1], last[1])))
    resolution = None
    for stage, depth in enumerate(depths):
        mask = shapes.get(f"layers.{stage}.blocks.1.attn_mask", ()) if depth > 1 else ()
        side = math.isqrt(mask[0]) if mask else 0
        if side and side * side == mask[0] and found[stage][0] == found[stage][1]:
            pixels = side * found[stage][0] * patch * 2**stage
            resolution = (pixels, pixels)
            break
    return Windows(found, before if before != found else None, resolution, "its buffers")


def _trained_side(side: int, largest: float) -> int:
    """Return the side p of the pretraining window for which log2(8 (side - 1) / (p - 1) + 1) / 3 is this largest
    value."""
    if side < 2 or not 1e-4 < largest < 16:  # no useful window is outside; a damaged value may be anything
        return side
    return 1 + round(8 * (side - 1) / (2 ** (3 * largest) - 1))


def windows_from_name(name: str) -> Windows | None:
    """Return the windows from a name in the official pattern, such as `window8_256` or `window12to16_192to256`, which
    timm and Hugging Face use too, or from that of a release of mmpretrain or torchvision."""
    match = re.search(r"window(\d+)(?:to(\d+))?[_-](\d{2,4})(?:to(\d+))?", name)
    if other := re.search(r"swinv2-\w+-w(?P<window>\d+)_.*-(?P<side>\d{2,4})px", name):
        found = _uniform(int(other["window"]), int(other["side"]), name)
        if "_in21k-pre_" in name:  # all of these were trained at 192 pixels with windows of 12 first
            found.pretrained = _clamped([(12, 12)] * NUM_STAGES, (192, 192))
        return found
    if _TORCHVISION.fullmatch(name):
        return _uniform(8, 256, name)
    if not match:
        return None
    first, small = int(match[1]), int(match[3])
    last, large = (int(text) if text else None for text in match.group(2, 4))
    side = large or small
    window = [(last or first, last or first)] * NUM_STAGES
    pretrained = _clamped([(first, first)] * NUM_STAGES, (small, small)) if last else None
    return Windows(window, pretrained, (side, side), f"the name {name}")


def _uniform(window: int, side: int, name: str) -> Windows:
    return Windows([(window, window)] * NUM_STAGES, None, (side, side), f"the name {name}")


def crop_from_name(name: str) -> float:
    """Return the share of the tighter side of an image that an evaluation of released weights keeps."""
    match = _TORCHVISION.fullmatch(name)
    return 256 / _TORCHVISION_RESIZED[match[1]] if match else 0.875


def windows_from_config(config: Mapping[str, Any]) -> Windows | None:
    """Return the windows from the config.json of Hugging Face, or from the model arguments in that of timm."""
    side = config.get("window_size")
    if not side:
        return None
    each_stage = isinstance(side, (list, tuple)) and len(side) == NUM_STAGES
    image = config.get("image_size") or config.get("img_size")
    before = config.get("pretrained_window_sizes")
    if before and len(before) != NUM_STAGES:
        raise ValueError(f"pretrained_window_sizes={before!r} is not one per stage")
    return Windows(
        [_pair(each) for each in side] if each_stage else [_pair(side)] * NUM_STAGES,
        [_pair(each) for each in before] if before and any(before) else None,
        _pair(image) if image else None,
        "config.json",
    )


def _pair(value: Any) -> Window:
    """Return two sides. Raises ValueError or TypeError unless they are integers of at least 0."""
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, int) and 0 <= side < 2**20 for side in sides):
        raise ValueError(f"{value!r} is not one or two integers")
    return int(sides[0]), int(sides[1])


def _clamped(sides: list[Window], resolution: tuple[int, int]) -> list[Window]:
    model = ModelConfig(window=[list(side) for side in sides])
    return [stage.window for stage in stage_geometry(model, *resolution)]


def put_windows(metadata: dict[str, Any], found: Windows) -> None:
    """Write windows and input size into metadata; one window for all stages if clamping determines the others."""
    model = metadata["model"]
    sides = found.window or []
    if found.resolution:
        metadata["data"]["resolution"] = list(found.resolution)
        patch = model["patch_size"]
        rows, columns = (-(-side // patch) for side in found.resolution)
        uniform = []
        for _ in sides:
            uniform.append(fit_window(sides[0], (rows, columns), model.get("window_rule", "per-axis"))[0])
            rows, columns = -(-rows // 2), -(-columns // 2)
        if uniform == sides:
            sides = [sides[0]] * len(sides)
    same = len(set(sides)) == 1 and sides[0][0] == sides[0][1]
    model["window"] = sides[0][0] if same else plain_windows(sides)
    if found.pretrained:
        model["pretrained_window"] = plain_windows(found.pretrained)
