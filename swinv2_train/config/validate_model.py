"""Checks of the model section."""

from __future__ import annotations

from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.model import (
    NORM_PLACEMENTS,
    NUM_STAGES,
    POSITION_BIASES,
    SIMILARITIES,
    WINDOW_RULES,
    ModelConfig,
    attention_backends,
    checkpointing_periods,
    mlp_width,
    pretrained_temporal_windows,
    pretrained_windows,
    windows,
)


def validate_model(config: ModelConfig) -> None:
    """Reject a model that cannot be built.

    Raises:
        ConfigError: naming the field, its value, and the fix.
    """
    for key in ("depths", "num_heads"):
        values = getattr(config, key)
        if len(values) != NUM_STAGES or any(value < 1 for value in values):
            raise ConfigError(f"model.{key}", values, f"must be {NUM_STAGES} integers of at least 1, one per stage")
    for key in ("in_channels", "patch_size", "embed_dim"):
        if getattr(config, key) < 1:
            raise ConfigError(f"model.{key}", getattr(config, key), "must be at least 1")
    for stage, heads in enumerate(config.num_heads):
        dim = config.embed_dim * 2**stage
        if dim % heads:
            hint = f"{heads} heads do not divide the {dim} channels of stage {stage + 1}"
            raise ConfigError("model.num_heads", config.num_heads, hint)
    if mlp_width(config, config.embed_dim) < 1:
        raise ConfigError("model.mlp_ratio", config.mlp_ratio, "leaves the MLP of stage 1 without a hidden channel")
    if not 0 <= config.drop_path < 1:
        hint = f"must be a probability from 0 to below 1{percent(config.drop_path)}"
        raise ConfigError("model.drop_path", config.drop_path, hint)
    if config.extra_norm_period < 0:
        raise ConfigError("model.extra_norm_period", config.extra_norm_period, "must be 0 (none) or a number of blocks")
    if config.sequential_chunk_mib <= 0:
        raise ConfigError("model.sequential_chunk_mib", config.sequential_chunk_mib, "must be above 0")
    for key, choices in (
        ("norm_placement", NORM_PLACEMENTS),
        ("similarity", SIMILARITIES),
        ("position_bias", POSITION_BIASES),
        ("window_rule", WINDOW_RULES),
    ):
        if getattr(config, key) not in choices:
            raise ConfigError(f"model.{key}", getattr(config, key), f"must be one of {', '.join(choices)}")
    if config.window_rule == "official" and any(height != width for height, width in windows(config)):
        hint = "model.window_rule=official needs square windows; use square ones, or model.window_rule=per-axis"
        raise ConfigError("model.window", config.window, hint)
    if config.temporal_patch < 0:
        hint = "must be 0 (a model of images) or the frames of a patch"
        raise ConfigError("model.temporal_patch", config.temporal_patch, hint)
    if config.temporal_patch and config.absolute_position:
        hint = f"is for images; set it to false, or model.temporal_patch={config.temporal_patch} to 0"
        raise ConfigError("model.absolute_position", True, hint)
    windows(config), pretrained_windows(config), pretrained_temporal_windows(config)
    attention_backends(config), checkpointing_periods(config)
