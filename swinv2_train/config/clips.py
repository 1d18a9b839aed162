"""Checks of clips: the data, the model, and the task must all be for videos, or all for images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swinv2_train.config.checks import at_least, clip_frames
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks.base import ALWAYS, NEVER

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config


def check_clips(config: Config) -> None:
    """Check the clips of a config.

    Raises:
        ConfigError: for the first error.
    """
    frames, patch = clip_frames(config), config.model.temporal_patch
    at_least("data.frame_stride", config.data.frame_stride, 1)
    _check_task(config, frames)
    if frames and not patch:
        hint = "makes clips, and the model is for images (model.temporal_patch=0); set model.temporal_patch=2"
        raise ConfigError("data.frames", frames, hint)
    if patch and not frames:
        hint = "is for clips, and data.frames=0 reads images; set data.frames=32, or model.temporal_patch=0"
        raise ConfigError("model.temporal_patch", patch, hint)
    if frames and frames % patch:
        usual = -(-frames // patch) * patch
        raise ConfigError("data.frames", frames, f"must be a multiple of model.temporal_patch={patch}, such as {usual}")
    if frames:
        _check_frames(config)


def _check_task(config: Config, frames: int) -> None:
    task = config.task
    if frames and task.CLIPS == NEVER:
        hint = f"task={task.name} is for images; set data.frames=0 model.temporal_patch=0, or use task=video"
        raise ConfigError("data.frames", frames, hint)
    if not frames and task.CLIPS == ALWAYS:
        hint = f"task={task.name} is for clips; set their length, such as data.frames=32, and model.temporal_patch=2"
        raise ConfigError("data.frames", frames, hint)


def _check_frames(config: Config) -> None:
    """Check what reads images against the frames of videos: 3 channels of 8 bits."""
    data = config.data
    if config.model.in_channels != 3:
        hint = "the frames of a video have 3 channels; set 3"
        raise ConfigError("model.in_channels", config.model.in_channels, hint)
    for key, unset in (("scale", None), ("nodata", None), ("image", None)):
        if getattr(data, key) != unset:
            hint = f"is for images, and data.frames={data.frames} reads videos; set null"
            raise ConfigError(f"data.{key}", getattr(data, key), hint)
    if data.scaled_decoding:
        hint = f"is for images, and data.frames={data.frames} reads videos; set false"
        raise ConfigError("data.scaled_decoding", True, hint)
    if data.augment.transform is not None:
        hint = f"makes an image, and data.frames={data.frames} needs clips; set null"
        raise ConfigError("data.augment.transform", data.augment.transform, hint)
    if config.probe.shards:
        hint = f"probes read images, and data.frames={data.frames} makes a model of clips; leave it empty"
        raise ConfigError("probe.shards", config.probe.shards, hint)
