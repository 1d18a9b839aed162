"""Clips as inputs of a model: drawn for training, fixed for tests. No more frames are decoded than a clip has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from swinv2_train.config.data import DataConfig
from swinv2_train.data.clips import test_clips, train_clip
from swinv2_train.data.geometry import Crop, draw_crop, fixed_crop
from swinv2_train.data.sample import Sample
from swinv2_train.data.video import Video


def random_clip(sample: Sample, size: tuple[int, int], data: DataConfig, rng: np.random.Generator) -> Tensor:
    """Return a random clip of a sample's video, (3, `data.frames`, *size) uint8: one crop and one flip for all frames.

    Raises:
        BrokenSample: if the video cannot be decoded.
    """
    video = sample.video
    numbers = train_clip(video.facts.frames, data.frames, data.frame_stride, rng)
    crop = draw_crop(video.size, size, data.augment, rng)
    return _cropped(video, numbers, crop, data)


def fixed_views(sample: Sample, size: tuple[int, int], data: DataConfig, counts: tuple[int, int]) -> Tensor:
    """Return the views of a sample's video for a test, (clips * crops, 3, `data.frames`, *size) uint8.

    All crops of the first clip come first.

    Args:
        counts: clips, spread over the video, and crops of each, see `view_crops`.

    Raises:
        BrokenSample: if the video cannot be decoded.
        ConfigError: for an unknown `data.crop_mode`.
    """
    video, (clips, number) = sample.video, counts
    crops = view_crops(video.size, size, data.crop_pct, data.crop_mode, number)
    views = []
    for numbers in test_clips(video.facts.frames, data.frames, data.frame_stride, clips):
        entire = replace(crops[0], size=crops[0].scaled, corner=(0, 0))  # resized once for all crops
        scaled = _cropped(video, numbers, entire, data)
        for crop in crops:
            top, left = crop.corner
            views.append(scaled[..., top : top + size[0], left : left + size[1]])
    return torch.stack(views)


def view_crops(
    source: tuple[int, int], size: tuple[int, int], crop_pct: float, crop_mode: str, number: int
) -> list[Crop]:
    """Return the crops of a frame: the one of `fixed_crop`, or several from one end of the longer side to the other.

    The longer side is the one of which a crop covers less. Along the other side, all of them are in the center.

    Args:
        source: height and width of the frame.
        number: of crops; several are for `crop_mode=center`.
    """
    center = fixed_crop(source, size, crop_pct, crop_mode)
    if number == 1:
        return [center]
    axis = int(center.scaled[1] * size[0] >= center.scaled[0] * size[1])
    room = center.scaled[axis] - size[axis]
    crops = []
    for index in range(number):
        corner = list(center.corner)
        corner[axis] = round(index * room / (number - 1))  # the middle one is that of `fixed_crop`
        crops.append(replace(center, corner=(corner[0], corner[1])))
    return crops


def _cropped(video: Video, numbers: list[int], crop: Crop, data: DataConfig) -> Tensor:
    """Return the crop of some frames, (3, N, *crop.size); no more than one frame is in memory at its full size."""
    return video.frames(numbers, lambda frame: crop.image(frame, data.augment.interpolation))
