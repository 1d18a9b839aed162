"""Clips as inputs: the drawn frames and no others, one crop for all of them, views from end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from swinv2_train.config.data import AugmentConfig, DataConfig
from swinv2_train.data.clip_input import fixed_views, random_clip, view_crops
from swinv2_train.data.clips import train_clip
from swinv2_train.data.geometry import fixed_crop
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import VIDEO
from tests.data.videos import read_numbers, video

WHOLE = AugmentConfig(scale=[1.0, 1.0], ratio=[4 / 3, 4 / 3], hflip=0.0)
DATA = DataConfig(frames=4, frame_stride=3, crop_pct=1.0, augment=WHOLE)
HEIGHT, WIDTH = 48, 64


def sample(data: bytes) -> Sample:
    return Sample(RawSample("key", "mp4", {VIDEO: data}, VIDEO), 3)


@pytest.fixture(scope="module")
def film() -> bytes:
    return video(30, size=(HEIGHT, WIDTH))


def test_a_random_clip_has_the_drawn_frames(film: bytes) -> None:
    starts = set()
    for seed in range(6):
        clip = random_clip(sample(film), (HEIGHT, WIDTH), DATA, np.random.default_rng(seed))
        assert (clip.shape, clip.dtype) == ((3, 4, HEIGHT, WIDTH), torch.uint8)
        numbers = read_numbers(clip)
        assert numbers == train_clip(30, 4, 3, np.random.default_rng(seed))
        starts.add(numbers[0])
    assert len(starts) > 2


def test_crop_and_flip_are_drawn_once_for_all_frames() -> None:
    still = sample(video([77] * 12, size=(HEIGHT, WIDTH)))
    data = replace(DATA, augment=AugmentConfig(scale=[0.3, 0.6]), frame_stride=1)
    clips = [random_clip(still, (24, 32), data, np.random.default_rng(seed)) for seed in range(4)]
    for clip in clips:
        differences = (clip.float() - clip[:, :1].float()).abs()
        assert differences.mean() < 3  # of the codec; another crop would differ by far more
    assert min((one.float() - clips[0].float()).abs().mean() for one in clips[1:]) > 20
    mirrored = replace(DATA, augment=replace(WHOLE, hflip=1.0))
    flipped = random_clip(still, (HEIGHT, WIDTH), mirrored, np.random.default_rng(0))
    assert read_numbers(flipped.flip(-1)) == [77] * 4


def test_views_are_clips_times_crops(film: bytes) -> None:
    data, size = replace(DATA, frame_stride=2), (32, 32)
    views = fixed_views(sample(film), size, data, (3, 2))
    assert (views.shape, views.dtype) == ((6, 3, 4, 32, 32), torch.uint8)
    middle = fixed_views(sample(film), size, data, (1, 1))[0]
    frames = sample(film).video.frames([11, 13, 15, 17])  # floor(0.5 * (30 - 8 + 1))
    crop = fixed_crop((HEIGHT, WIDTH), size, 1.0, "center")
    expected = torch.stack([crop.image(frames[:, number], "bilinear") for number in range(4)], dim=1)
    assert torch.equal(middle, expected)
    entire = fixed_views(sample(film), (HEIGHT, WIDTH), data, (3, 1))
    assert [read_numbers(clip)[0] for clip in entire] == [3, 11, 19]  # floor((i + 0.5) * 23 / 3)
    scaled = crop.scaled  # 32 x 42: the crops of a clip are its two ends, and share 22 columns
    assert scaled == (32, 42)
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert torch.equal(views[first][..., 10:], views[second][..., :22])


def test_a_video_that_is_shorter_than_a_clip_starts_again() -> None:
    short = sample(video(5, size=(HEIGHT, WIDTH)))
    assert read_numbers(random_clip(short, (HEIGHT, WIDTH), DATA, np.random.default_rng(0))) == [0, 3, 1, 4]
    views = fixed_views(short, (HEIGHT, WIDTH), DATA, (2, 1))
    assert [read_numbers(clip) for clip in views] == [[0, 3, 1, 4]] * 2


@pytest.mark.parametrize(
    ("source", "size", "crop_pct", "number", "corners"),
    [
        ((48, 64), (32, 32), 1.0, 1, [(0, 5)]),
        ((48, 64), (32, 32), 1.0, 3, [(0, 0), (0, 5), (0, 10)]),
        ((64, 48), (32, 32), 1.0, 3, [(0, 0), (5, 0), (10, 0)]),
        ((48, 64), (32, 32), 1.0, 2, [(0, 0), (0, 10)]),
        ((48, 64), (32, 32), 1.0, 5, [(0, 0), (0, 2), (0, 5), (0, 8), (0, 10)]),
        ((48, 64), (32, 32), 0.8, 3, [(4, 0), (4, 10), (4, 21)]),
        ((48, 48), (32, 32), 1.0, 3, [(0, 0), (0, 0), (0, 0)]),
        ((48, 64), (24, 48), 1.0, 3, [(0, 0), (6, 0), (12, 0)]),  # of a wide crop, the height is the longer side
    ],
)
def test_crops_go_from_one_end_of_the_longer_side_to_the_other(
    source: tuple[int, int],
    size: tuple[int, int],
    crop_pct: float,
    number: int,
    corners: list[tuple[int, int]],
) -> None:
    assert [crop.corner for crop in view_crops(source, size, crop_pct, "center", number)] == corners
