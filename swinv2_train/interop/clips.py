"""Clips to compare two models on: of encoded videos, and synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.data.augment import normalise_clips
from swinv2_train.data.clip_input import FixedCrops
from swinv2_train.data.clips import test_clips
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.video import Video

if TYPE_CHECKING:
    from swinv2_train.interop.load import LoadedModel

_SIZES = ((1.3, 1.7), (1.9, 1.1))
"""Heights and widths of the frames of synthetic clips, relative to the input: wide and tall."""


def encoded_videos(paths: Sequence[Path], loaded: LoadedModel) -> list[Tensor]:
    """Return the clip in the middle of video files, (T, 3, H, W) uint8 each, not yet cropped.

    Raises:
        DataError: naming the first file that cannot be used.
    """
    data, found = loaded.config.data, []
    for path in paths:
        try:
            video = Video.of(path, data.max_pixels)
            (numbers,) = test_clips(video.facts.frames, data.frames, data.frame_stride, 1)
            found.append(video.frames(numbers).transpose(0, 1).contiguous())
        except BrokenSample as error:
            raise DataError(f"{path}: {error}") from error
    return found


def made_clips(loaded: LoadedModel) -> list[Tensor]:
    """Return synthetic clips, (T, C, H, W) uint8: smooth shapes that change over time, of odd sizes around that of the
    input."""
    (height, width), frames = resolution(loaded.config), clip_frames(loaded.config)
    rng, made = np.random.default_rng(0), []
    for tall, wide in _SIZES:
        coarse = torch.from_numpy(rng.uniform(0, 1, (1, loaded.config.model.in_channels, 4, 7, 9))).float()
        size = (frames, int(height * tall) | 1, int(width * wide) | 1)
        smooth = F.interpolate(coarse, size=size, mode="trilinear", align_corners=False)[0]
        made.append((smooth * 255).round().to(torch.uint8).transpose(0, 1).contiguous())
    return made


def prepared_clips(loaded: LoadedModel, clips: Sequence[Tensor]) -> Tensor:
    """Return clips (T, C, H, W) uint8 as this package's input, (B, C, T, h, w) float32: cropped and normalized."""
    config, found = loaded.config, []
    for clip in clips:
        crops = FixedCrops.of((clip.shape[-2], clip.shape[-1]), resolution(config), config.data)
        found += crops.views(crops.scaled(clip).transpose(0, 1))
    return normalise_clips(torch.stack(found), loaded.mean, loaded.std)
