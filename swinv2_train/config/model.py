"""Model section of the config, the named variants, and the geometry that follows from them.

Pure arithmetic: nothing here imports torch. Therefore a wrong geometry is rejected before anything slow starts, and a
dry run prints windows, parameters, and FLOPs of a 3-billion-parameter model immediately.

Sources: arXiv 2111.09883 sections 3.2 to 3.6 and the official implementation (microsoft/Swin-Transformer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from swinv2_train.config import own_parts
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.own_parts import ATTENTION_BACKENDS
from swinv2_train.config.section import Section

NORM_PLACEMENTS = ("res-post", "pre", "post", "sandwich")
SIMILARITIES = ("cosine", "dot")
POSITION_BIASES = ("log-cpb", "linear-cpb", "table")
WINDOW_RULES = ("per-axis", "official")
NUM_STAGES = 4
CPB_HIDDEN = 512
"""Hidden width of the network that computes the position bias (official code)."""


@dataclass
class ModelConfig(Section):
    """A Swin Transformer V2 backbone. Every `*_per_stage`-like field accepts one value or a list of four."""

    name: str = "swinv2_tiny"
    """Label for tables and model cards; the fields below define the model.

    A name of the paper belongs to one size. A model of another size is named after its channels and depths, such as
    swinv2_c64_d2-2-6-2, unless you name it.
    """
    in_channels: int = 3
    """Channels of the input image."""
    patch_size: int = 4
    """Side of a patch, in pixels."""
    embed_dim: int = 96
    """Channels C of stage 1; stages 2 to 4 have 2C, 4C, and 8C."""
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    """Blocks per stage."""
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    """Attention heads per stage."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, as a multiple of its channels."""
    window: Any = 8
    """Attention window in tokens: one side, or per stage a side or a [height, width] pair. Clips also have
    `temporal_window`."""
    window_rule: str = "per-axis"
    """Windows on a map with a side not larger than the window: per-axis (as in timm: that side of the window shrinks to
    the map and is not shifted; the other side is unaffected), or official (as in the official code: one square window
    of the shorter side of the map, not shifted along either side). Equal on square maps. Weights carry the rule they
    were trained with."""
    pretrained_window: Any = 0
    """Window the weights were trained with, per stage like `window`; 0 means this model's own. It scales the
    coordinates of log-CPB and linear-CPB, and it is the size of a bias table.  Set it as it was clamped to the small
    maps of that training: weights from 192 pixels and window 12 had [12, 12, 12, 6].
    """
    temporal_patch: int = 0
    """Frames per patch of a model of clips, such as 2; 0: a model of images. The frames of a clip (`data.frames`) must
    be a multiple."""
    temporal_window: Any = 8
    """Attention window along time, in tokens of `temporal_patch` frames, one or per stage; for clips only. A shorter
    clip shrinks it."""
    pretrained_temporal_window: Any = 0
    """Window along time that the weights were trained with, one or per stage, like `pretrained_window`; 0 means
    `temporal_window`, even if the clips of that training are shorter. It also is the size of a bias table, of which
    shorter clips use the offsets that they have."""
    drop_path: float = 0.1
    """Stochastic depth rate of the last block; it increases linearly from 0 at the first."""
    extra_norm_period: int = 0
    """A LayerNorm on the main branch after every n-th block of a stage (paper section 3.6: 6 for H and G); 0: none."""
    extra_norm_stage: bool = False
    """Also such a LayerNorm after the last block of every stage (SatVision-TOA)."""
    norm_placement: str = "res-post"
    """Placement of the norm of a block f: res-post x + norm(f(x)), of Swin V2; pre x + f(norm(x)), of Swin V1; post
    norm(x + f(x)); sandwich x + norm(f(norm(x)))."""
    similarity: str = "cosine"
    """Attention scores: cosine (q and k of length 1, times a learned scale per head), or dot (q k / sqrt(d))."""
    position_bias: str = "log-cpb"
    """Position bias: log-cpb (a network on log-spaced offsets), linear-cpb (the same on plain offsets), or table (a
    parameter per offset, as in Swin V1; needs `data.resolution`; bicubic interpolation for another window, but a
    shorter time uses the middle of the table)."""
    absolute_position: bool = False
    """Add a learned absolute position embedding after the patch embedding (needs `data.resolution`; for images
    only)."""
    attention: Any = "sdpa"
    """Attention backend, one or per stage: reference (plain formula), sdpa (torch's), sequential (in chunks), or one of
    a module in `imports`."""
    sequential_chunk_mib: float = 256.0
    """Upper bound, in MiB, on all score-sized tensors together that `sequential` keeps at a time."""
    checkpointing: Any = 0
    """Activation checkpointing, one or per stage: 0 none, 1 every block, n the first of every n blocks."""


VARIANTS: dict[str, dict[str, Any]] = {
    "swinv2_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "swinv2_small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "swinv2_base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "swinv2_large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
    "swinv2_huge": {
        "embed_dim": 352,
        "depths": [2, 2, 18, 2],
        "num_heads": [11, 22, 44, 88],
        "extra_norm_period": 6,
    },
    "swinv2_giant": {
        "embed_dim": 512,
        "depths": [2, 2, 42, 4],
        "num_heads": [16, 32, 64, 128],
        "extra_norm_period": 6,
    },
}
"""Sizes of the paper by name (section 3.6; heads follow the 32-channels-per-head rule)."""


def variant(name: str, **overrides: Any) -> ModelConfig:
    """Return the named size as a `ModelConfig`, with fields replaced by keyword.

    Raises:
        ConfigError: if the size is unknown.
    """
    if name not in VARIANTS:
        raise ConfigError("model.name", name, f"unknown size; use one of {', '.join(VARIANTS)}")
    return ModelConfig(name=name, **{**VARIANTS[name], **overrides})


def per_stage(key: str, value: Any) -> list[Any]:
    """Return one value for all stages, or a list of one per stage, as a list of four."""
    if not isinstance(value, (list, tuple)):
        return [value] * NUM_STAGES
    if len(value) != NUM_STAGES:
        raise ConfigError(key, list(value), f"must be one value or {NUM_STAGES}, one per stage, not {len(value)}")
    return list(value)


def _sides(key: str, value: Any, *, minimum: int) -> list[tuple[int, int]]:
    """Return per-stage windows as (height, width) pairs."""
    pairs = []
    for item in per_stage(key, value):
        pair = item if isinstance(item, (list, tuple)) else (item, item)
        whole = all(isinstance(side, int) and not isinstance(side, bool) and side >= minimum for side in pair)
        if len(pair) != 2 or not whole:
            raise ConfigError(key, value, f"a window side must be an integer of at least {minimum}; two form a pair")
        pairs.append((pair[0], pair[1]))
    return pairs


def windows(config: ModelConfig) -> list[tuple[int, int]]:
    """Return the configured attention window (height, width) of each stage, before clamping to the map."""
    return _sides("model.window", config.window, minimum=1)


def pretrained_windows(config: ModelConfig) -> list[tuple[int, int]]:
    """Return the window (height, width) that each stage was pretrained with; (0, 0) means its own."""
    return _sides("model.pretrained_window", config.pretrained_window, minimum=0)


def temporal_windows(config: ModelConfig) -> list[int]:
    """Return the configured attention window along time of each stage, before clamping to the clip."""
    return _lengths("model.temporal_window", config.temporal_window, minimum=1)


def pretrained_temporal_windows(config: ModelConfig) -> list[int]:
    """Return the window along time that each stage was pretrained with; the configured one if none is set.

    Unlike the height and the width, it is never clamped to the input, so an offset in time means the same for clips of
    any length.
    """
    return [before or own for before, own in zip(set_temporal_windows(config), temporal_windows(config), strict=True)]


def set_temporal_windows(config: ModelConfig) -> list[int]:
    """Return the pretraining window along time of each stage as it is set; 0: not set."""
    return _lengths("model.pretrained_temporal_window", config.pretrained_temporal_window, minimum=0)


def _lengths(key: str, value: Any, *, minimum: int) -> list[int]:
    lengths = per_stage(key, value)
    if any(not isinstance(each, int) or isinstance(each, bool) or each < minimum for each in lengths):
        raise ConfigError(key, value, f"must be an integer of at least {minimum}, or {NUM_STAGES}, one per stage")
    return lengths


def attention_windows(config: ModelConfig) -> list[tuple[int, ...]]:
    """Return the window of each stage as its blocks get it: (height, width), or (time, height, width) for clips."""
    return _with_time(config, temporal_windows(config), windows(config))


def attention_pretrained_windows(
    config: ModelConfig, resolution: tuple[int, int] | None = None
) -> list[tuple[int, ...]]:
    """Return the pretraining window of each stage as its blocks get it, along the axes of `attention_windows`.

    For `position_bias=table`, it is the window whose offsets the table contains, see `table_windows`. Otherwise a
    height or width of 0 means that of the window in use.
    """
    spatial = table_windows(config, resolution) if config.position_bias == "table" else pretrained_windows(config)
    return _with_time(config, pretrained_temporal_windows(config), spatial)


def _with_time(config: ModelConfig, lengths: list[int], spatial: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    if not config.temporal_patch:
        return list(spatial)
    return [(length, *pair) for length, pair in zip(lengths, spatial, strict=True)]


def attention_backends(config: ModelConfig) -> list[str]:
    """Return the attention backend of each stage."""
    backends = per_stage("model.attention", config.attention)
    for backend in backends:
        known = (*ATTENTION_BACKENDS, *own_parts.parts("attention"))
        if backend not in known:
            hint = f"must be one of {', '.join(known)}; --import adds those of your own module"
            raise ConfigError("model.attention", backend, hint)
    return backends


def table_windows(config: ModelConfig, resolution: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """Return per stage the window (height, width) whose offsets a bias table (`position_bias=table`) contains.

    This is the pretraining window if it is set, else the window in use at this resolution.

    Args:
        resolution: input (height, width) in pixels that the model is built for.

    Raises:
        ConfigError: if a window must be clamped to a map and there is no resolution.
    """
    trained = pretrained_windows(config)
    if all(height and width for height, width in trained):
        return trained
    if resolution is None:
        raise ConfigError("model.position_bias", "table", "needs the resolution that the model is built for")
    used = [stage.window for stage in stage_geometry(config, *resolution)]
    return [(before[0] or own[0], before[1] or own[1]) for before, own in zip(trained, used, strict=True)]


def checkpointing_periods(config: ModelConfig) -> list[int]:
    """Return per stage 0 for no activation checkpointing, or n for every n-th block."""
    periods = per_stage("model.checkpointing", config.checkpointing)
    for period in periods:
        if not isinstance(period, int) or isinstance(period, bool) or period < 0:
            raise ConfigError(
                "model.checkpointing", period, "must be 0 (none), 1 (every block), or n (every n-th block)"
            )
    return periods


def checkpointed_blocks(config: ModelConfig) -> list[list[bool]]:
    """Return per stage and block whether its forward pass is recomputed in the backward pass."""
    return [
        [bool(period) and block % period == 0 for block in range(depth)]
        for period, depth in zip(checkpointing_periods(config), config.depths, strict=True)
    ]


def mlp_width(config: ModelConfig, dim: int) -> int:
    """Return the hidden width of the MLP of a block with `dim` channels."""
    return int(dim * config.mlp_ratio)


def extra_norms(config: ModelConfig) -> list[list[bool]]:
    """Return per stage and block whether it ends with a LayerNorm on the main branch."""
    period = config.extra_norm_period
    return [
        [
            (period > 0 and block % period == 0) or (config.extra_norm_stage and block == depth)
            for block in range(1, depth + 1)
        ]
        for depth in config.depths
    ]


def extra_norm_text(config: ModelConfig) -> str:
    """Return where the extra norms are, for display; an empty string if there are none."""
    parts = [f"every {config.extra_norm_period} blocks"] if config.extra_norm_period else []
    return " and ".join([*parts, "at the end of every stage"] if config.extra_norm_stage else parts)


def drop_path_rates(config: ModelConfig) -> list[float]:
    """Return the stochastic depth rate of every block over all stages: linear from 0 to `config.drop_path`."""
    last = max(sum(config.depths) - 1, 1)
    return [config.drop_path * block / last for block in range(sum(config.depths))]


@dataclass(frozen=True)
class StageGeometry:
    """Geometry of one stage of the backbone at one input size. All sizes in tokens; images have a time of 1."""

    height: int
    width: int
    """Token map of the stage."""
    window: tuple[int, int]
    """Window after clamping to a small map."""
    shift: tuple[int, int]
    """Cyclic shift of every second block; 0 if the window covers the map, see `fit_window`."""
    padded: tuple[int, int]
    """Map padded at the bottom and right to whole windows."""
    dim: int
    depth: int
    num_heads: int
    time: int = 1
    time_window: int = 1
    """Window along time after clamping to a short clip."""
    time_shift: int = 0
    time_padded: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of the map."""
        return self.time * self.height * self.width

    @property
    def num_windows(self) -> int:
        rows, columns = (side // extent for side, extent in zip(self.padded, self.window, strict=True))
        return self.time_padded // self.time_window * rows * columns

    @property
    def window_tokens(self) -> int:
        return self.time_window * self.window[0] * self.window[1]


def fit_window(
    window: tuple[int, ...], sides: tuple[int, ...], rule: str = "per-axis"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Clamp a window to a map and return it with its shift: (window, shift).

    The rules are equivalent if the window is square and the map is square or larger than the window on both sides. A
    time axis is always clamped per axis.

    Args:
        window: configured (height, width) or (time, height, width); square for the rule `official`.
        sides: the map in tokens, along the same axes.
        rule: `ModelConfig.window_rule`.
    """
    clamped = tuple(min(extent, side) for extent, side in zip(window, sides, strict=True))
    shift = tuple(extent // 2 if extent < side else 0 for extent, side in zip(window, sides, strict=True))
    shorter = min(sides[-2:])
    if rule == "official" and shorter <= window[-1]:
        return (*clamped[:-2], shorter, shorter), (*shift[:-2], 0, 0)
    return clamped, shift


def stage_geometry(config: ModelConfig, height: int, width: int, frames: int = 0) -> list[StageGeometry]:
    """Return the geometry of all stages for an input of height x width pixels.

    Args:
        frames: of a clip; 0: an image, or a clip whose time does not matter.

    Raises:
        ConfigError: if the input has no pixels, or if its frames are not whole patches.
    """
    if height < 1 or width < 1:
        raise ConfigError("data.resolution", [height, width], "an image must have at least one pixel on each side")
    rows, columns = -(-height // config.patch_size), -(-width // config.patch_size)
    time = clip_tokens(config, frames) if frames else 1
    lengths = temporal_windows(config) if frames else [1] * NUM_STAGES
    stages = []
    for stage, (length, pair) in enumerate(zip(lengths, windows(config), strict=True)):
        sides = (time, rows, columns)
        window, shift = fit_window((length, *pair), sides, config.window_rule)
        padded = tuple(-(-side // fit) * fit for side, fit in zip(sides, window, strict=True))
        dim, depth, heads = config.embed_dim * 2**stage, config.depths[stage], config.num_heads[stage]
        along_time = (time, window[0], shift[0], padded[0])
        stages.append(StageGeometry(rows, columns, window[1:], shift[1:], padded[1:], dim, depth, heads, *along_time))
        rows, columns = -(-rows // 2), -(-columns // 2)
    return stages


def clip_tokens(config: ModelConfig, frames: int) -> int:
    """Return the tokens of a clip along time.

    Raises:
        ConfigError: if its frames are not whole patches.
    """
    if not config.temporal_patch or frames % config.temporal_patch:
        needed = f"must be a multiple of model.temporal_patch={config.temporal_patch}"
        fix = needed if config.temporal_patch else "needs model.temporal_patch, such as 2"
        raise ConfigError("data.frames", frames, fix)
    return frames // config.temporal_patch


def block_parameters(config: ModelConfig, resolution: tuple[int, int] | None = None) -> list[int]:
    """Return per stage the number of parameters of one block, without an extra norm; arguments as for
    `count_parameters`."""
    norms = 4 if config.norm_placement == "sandwich" else 2
    table = config.position_bias == "table"
    counts = []
    for stage, window in enumerate(attention_pretrained_windows(config, resolution)):
        d, heads = config.embed_dim * 2**stage, config.num_heads[stage]
        mlp = mlp_width(config, d)
        network = (len(window) + 1 + heads) * CPB_HIDDEN
        bias = heads * math.prod(2 * side - 1 for side in window) if table else network
        attention = 3 * d * d + 2 * d + d * d + d + (heads if config.similarity == "cosine" else 0) + bias
        counts.append(attention + 2 * d * mlp + mlp + d + norms * 2 * d)
    return counts


def count_parameters(config: ModelConfig, resolution: tuple[int, int] | None = None, num_classes: int = 0) -> int:
    """Return the number of parameters of the backbone with its final norm and, if `num_classes` > 0, of the linear
    head.

    It is here and not in `planner/` because task sections use it, including those of users' modules.

    Args:
        resolution: input (height, width) in pixels; needed only by an absolute position embedding and bias tables.

    Raises:
        ConfigError: if there is no resolution and one is needed.
    """
    c = config.embed_dim
    total = config.in_channels * patch_pixels(config) * c + c + 2 * c
    norms = extra_norms(config)
    for stage, (depth, block) in enumerate(zip(config.depths, block_parameters(config, resolution), strict=True)):
        d = c * 2**stage
        total += depth * block + sum(norms[stage]) * 2 * d
        if stage < NUM_STAGES - 1:
            total += 8 * d * d + 4 * d
    if config.absolute_position:
        rows, columns = position_map(config, resolution)
        total += rows * columns * c
    return total + 2 * 8 * c + (8 * c + 1) * num_classes


def patch_pixels(config: ModelConfig) -> int:
    """Return the pixels of a patch in one channel, over all of its frames."""
    return max(config.temporal_patch, 1) * config.patch_size**2


def total_stride(config: ModelConfig) -> int:
    """Return the pixels per token of the last stage, along one side."""
    return config.patch_size * 2 ** (NUM_STAGES - 1)


def position_map(config: ModelConfig, resolution: tuple[int, int] | None) -> tuple[int, int]:
    """Return the rows and columns of a model's absolute position embedding for this resolution in pixels.

    Raises:
        ConfigError: if there is no resolution.
    """
    if resolution is None:
        raise ConfigError("model.absolute_position", True, "needs the resolution that the model is built for")
    return -(-resolution[0] // config.patch_size), -(-resolution[1] // config.patch_size)
