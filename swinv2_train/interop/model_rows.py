"""Rows of a model card that describe the model: its sizes, windows, and clips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.model import ModelConfig, extra_norm_text, pretrained_temporal_windows, stage_geometry
from swinv2_train.interop.peers import earlier_windows

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.load import LoadedModel

Rows = list[tuple[str, str]]


def model_rows(loaded: LoadedModel, parameters: int, dtype: str, weights: str) -> Rows:
    """Return the rows of a model, each a name and a value.

    Args:
        parameters: number of them.
        dtype: type of the numbers in the file.
        weights: `ema` or `raw`.
    """
    model, size = loaded.config.model, resolution(loaded.config)
    rows = [
        ("parameters", f"{parameters:,}"),
        ("channels per stage", listed(model.embed_dim * 2**stage for stage in range(len(model.depths)))),
        ("blocks per stage", listed(model.depths)),
        ("heads per stage", listed(model.num_heads)),
        ("windows per stage", listed(_sides(stage.window) for stage in stage_geometry(model, *size))),
        ("patch", f"{model.patch_size}x{model.patch_size} pixels"),
        *_clip_rows(loaded.config),
        ("MLP ratio", f"{model.mlp_ratio:g}"),
    ]
    earlier = earlier_windows(model, size)
    if any(map(any, earlier)):
        own = [stage.window for stage in stage_geometry(model, *size)]
        pairs = zip(earlier, own, strict=True)
        rows.append(
            ("windows of the pretraining", listed(_sides(before if any(before) else now) for before, now in pairs))
        )
    if norms := extra_norm_text(model):
        rows.append(("extra norm", norms))
    if model.absolute_position:
        rows.append(("absolute position embedding", "yes"))
    default = ModelConfig()
    for key in ("norm_placement", "similarity", "position_bias", "window_rule"):
        if getattr(model, key) != getattr(default, key):
            rows.append((key.replace("_", " "), str(getattr(model, key))))
    rows.append(("weights", f"{dtype}, {'moving average' if weights == 'ema' else 'as trained'}"))
    if loaded.source.step is not None:
        rows.append(("step", f"{loaded.source.step:,}"))
    return rows


def _clip_rows(config: Config) -> Rows:
    model, size = config.model, resolution(config)
    if not model.temporal_patch:
        return []
    stages = stage_geometry(model, *size, clip_frames(config))
    own, before = [stage.time_window for stage in stages], pretrained_temporal_windows(model)
    earlier = [("windows in time of the training", listed(before))] if before != own else []
    return [
        ("frames per patch", str(model.temporal_patch)),
        ("clip", f"{config.data.frames} frames at stride {config.data.frame_stride}"),
        ("windows in time per stage", listed(own)),
        *earlier,
    ]


def _sides(window: tuple[int, int]) -> str:
    return f"{window[0]}x{window[1]}"


def listed(values: Iterable[Any]) -> str:
    """Return values separated by commas."""
    return ", ".join(map(str, values))
