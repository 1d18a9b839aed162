"""Samples of video classification: everything that is drawn is the same in all frames of a clip."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from swinv2_train.config.compose import compose
from swinv2_train.config.schema import Config
from swinv2_train.data.auto_augment import ColourAugment
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import VIDEO
from swinv2_train.tasks.video.task import Video
from swinv2_train.tasks.video.transform import VideoTransform
from tests.data.videos import video
from tests.filmed import TINY_VIDEO


@functools.cache
def config(*overrides: str) -> Config:
    return compose([*TINY_VIDEO, *overrides])


def transform(*overrides: str, training: bool = True) -> VideoTransform:
    return VideoTransform(config(*overrides), [0.5] * 3, [0.25] * 3, training=training)


@functools.cache
def film() -> bytes:
    return video([7] * 16, size=(40, 48))


def sample(label: bytes | None = b"2", data: bytes | None = None) -> Sample:
    members = {VIDEO: film() if data is None else data} | ({} if label is None else {"cls": label})
    return Sample(RawSample("key", "mp4", members, VIDEO), 3)


def test_the_entries_of_a_clip_and_of_views() -> None:
    made = transform()(sample(), np.random.default_rng(0))
    assert (made["image"].shape, made["image"].dtype, int(made["label"])) == ((3, 8, 32, 32), torch.uint8, 2)
    views = transform("task.views=2x3", training=False)(sample(), np.random.default_rng(0))
    assert views["image"].shape == (6, 3, 8, 32, 32)
    assert {"video", "frames.json", "cls"} <= set(transform().members)
    task = Video(config("task.views=2x3"), [0.5] * 3, [0.25] * 3)
    one = task.figure_transform(sample(), np.random.default_rng(0))["image"]
    assert torch.equal(one, transform("task.views=1x1", training=False)(sample(), np.random.default_rng(0))["image"])
    assert task.eval_transform(sample(), np.random.default_rng(0))["image"].shape == views["image"].shape


@pytest.mark.parametrize(
    "overrides", [("task.auto_augment=rand-m9-mstd0.5-inc1",), ("task.color_jitter=0.8",), ("task.erase_prob=1",)]
)
def test_colors_and_erasing_are_the_same_in_all_frames(overrides: tuple[str, ...]) -> None:
    augmented, plain = transform(*overrides), transform()
    clip = torch.randint(0, 256, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    clip = clip.expand(3, 4, 32, 32).contiguous()
    changed = 0
    for seed in range(4):
        made = augmented.augmented(clip.clone(), np.random.default_rng(seed), "key")
        assert (made.shape, made.dtype) == (clip.shape, torch.uint8)
        assert torch.equal(made, made[:, :1].expand_as(made))
        assert torch.equal(made, augmented.augmented(clip.clone(), np.random.default_rng(seed), "key"))
        changed += not torch.equal(made, clip)
    assert changed
    assert torch.equal(plain.augmented(clip, np.random.default_rng(0), "key"), clip)


def test_a_clip_of_one_frame_is_augmented_like_an_image() -> None:
    image = torch.arange(3 * 32 * 32).reshape(3, 32, 32).to(torch.uint8)
    colors = ColourAugment(None, 0.5, (32, 32), (0.5, 0.5, 0.5), "bilinear")
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert torch.equal(colors.clip(image[:, None], one, "key")[:, 0], colors(image, other, "key"))
    assert one.random() == other.random()


def test_partners_are_mixed_frame_by_frame() -> None:
    mixing = transform("task.cutmix=1", "task.mix_prob=1", "optim.global_batch=8")
    clips = [torch.full((3, 8, 32, 32), value, dtype=torch.uint8) for value in (0, 1)]
    own, other = ({"image": clip, "label": torch.tensor(value)} for value, clip in enumerate(clips))
    assert mixing.partner(4) == 5
    mixed = mixing.mix(own, other, np.random.default_rng(1))
    assert 0 < float(mixed["share"]) < 1
    assert torch.equal(mixed["image"], mixed["image"][:, :1].expand_as(mixed["image"]))
    assert float(mixed["image"].float().mean()) == pytest.approx(1 - float(mixed["share"]), abs=1e-6)


def test_a_broken_video_is_reported_before_its_label() -> None:
    with pytest.raises(BrokenSample) as error:
        transform()(sample(b"none", film()[:300]), np.random.default_rng(0))
    assert "label" not in str(error.value)
    with pytest.raises(BrokenSample, match="cls"):
        transform()(sample(None), np.random.default_rng(0))
