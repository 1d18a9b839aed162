"""Clips as inputs of a model: drawn for training, fixed for tests. No more frames are decoded than a clip has."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    return video.frames(numbers, lambda frame: crop.image(frame, data.augment.interpolation))


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
    crops = FixedCrops.of(video.size, size, data, number)
    views = []
    for numbers in test_clips(video.facts.frames, data.frames, data.frame_stride, clips):
        views += crops.views(video.frames(numbers, crops.scaled))
    return torch.stack(views)


def center_clip(video: Video, size: tuple[int, int], data: DataConfig) -> Tensor:
    """Return the clip in the middle of a video, (3, `data.frames`, *size) uint8: the only view of `1x1`.

    Raises BrokenSample.
    """
    (numbers,) = test_clips(video.facts.frames, data.frames, data.frame_stride, 1)
    crops = FixedCrops.of(video.size, size, data)
    (view,) = crops.views(video.frames(numbers, crops.scaled))
    return view


@dataclass(frozen=True)
class FixedCrops:
    """The crops of a video's frames for a test."""

    crops: list[Crop]
    """See `view_crops`."""
    interpolation: str

    @classmethod
    def of(cls, source: tuple[int, int], size: tuple[int, int], data: DataConfig, number: int = 1) -> FixedCrops:
        """Return the crops of frames of a size `source`. Raises ConfigError for an unknown `data.crop_mode`."""
        return cls(view_crops(source, size, data.crop_pct, data.crop_mode, number), data.augment.interpolation)

    def scaled(self, frames: Tensor) -> Tensor:
        """Resize frames once for all crops: (..., 3, H, W) -> (..., 3, h, w)."""
        entire = replace(self.crops[0], size=self.crops[0].scaled, corner=(0, 0))
        return entire.image(frames, self.interpolation)

    def views(self, scaled: Tensor) -> list[Tensor]:
        """Return the crops of a clip of scaled frames (3, T, h, w), each (3, T, *size)."""
        height, width = self.crops[0].size
        corners = [crop.corner for crop in self.crops]
        return [scaled[..., top : top + height, left : left + width] for top, left in corners]


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
