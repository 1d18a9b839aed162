"""Clips for a model of clips, from videos in any form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.checks import resolution
from swinv2_train.config.paths import user_path
from swinv2_train.config.schema import Config
from swinv2_train.data.clip_input import FixedCrops, center_clip
from swinv2_train.data.clips import test_clips
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.video import Video


def clip_of(video: Any, config: Config) -> Tensor:
    """Return the clip in the middle of a video, cropped: (3, T, H, W) uint8, as the only view of an evaluation.

    Args:
        video: a file, its bytes, a sample, or decoded frames: an array (N, H, W, 3) or a tensor (3, N, H, W) uint8. If
            these are exactly `data.frames`, they are the clip.

    Raises:
        BrokenSample: if it cannot be used.
    """
    data, size = config.data, resolution(config)
    if isinstance(video, Sample):
        return center_clip(video.video, size, data)
    if isinstance(video, (str, Path, bytes)):
        source = video if isinstance(video, bytes) else user_path(video)
        return center_clip(Video.of(source, data.max_pixels), size, data)
    frames = _frames(video)
    if frames.shape[1] != data.frames:
        (numbers,) = test_clips(frames.shape[1], data.frames, data.frame_stride, 1)
        frames = frames[:, numbers]
    crops = FixedCrops.of((frames.shape[-2], frames.shape[-1]), size, data)
    (clip,) = crops.views(crops.scaled(frames.transpose(0, 1)).transpose(0, 1))
    return clip


def _frames(video: Any) -> Tensor:
    """Return decoded frames as (3, N, H, W). Raises BrokenSample."""
    if not isinstance(video, (np.ndarray, Tensor)):
        raise BrokenSample(f"pass a video file, bytes, an array or a tensor of frames, or a sample, not {video!r:.60}")
    is_array = isinstance(video, np.ndarray)
    frames = torch.from_numpy(np.ascontiguousarray(video)) if is_array else video.detach().cpu()
    if is_array and frames.ndim == 4:
        frames = frames.permute(3, 0, 1, 2)
    if frames.ndim != 4 or 0 in frames.shape or frames.shape[0] != 3 or frames.dtype != torch.uint8:
        found = f"{tuple(video.shape)} {video.dtype}"
        form = "arrays of frames are (N, H, W, 3) uint8, tensors (3, N, H, W) uint8"
        raise BrokenSample(f"it is {found}; {form}, and preprocessed batches tensors (B, 3, T, H, W) of floats")
    return frames
