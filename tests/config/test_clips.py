"""Clips of videos: data, model, and task must agree; the section of video classification."""

from __future__ import annotations

from typing import Any

import pytest

from swinv2_train.config.clips import check_clips
from swinv2_train.config.data import AugmentConfig, DataConfig
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.schema import Config, OptimConfig, ProbeConfig
from swinv2_train.config.tasks import ClassificationConfig, SimMIMConfig, TaskConfig, VideoConfig
from swinv2_train.config.tasks.base import ALWAYS


def config(
    task: TaskConfig | None = None, *, model: dict[str, Any] | None = None, data: dict[str, Any] | None = None
) -> Config:
    return Config(
        model=ModelConfig(**{"temporal_patch": 2} | (model or {})),
        task=task or VideoConfig(num_classes=10),
        data=DataConfig(**{"resolution": 64, "frames": 8} | (data or {})),
        optim=OptimConfig(global_batch=4),
    )


IMAGES: dict[str, Any] = {"model": {"temporal_patch": 0}, "data": {"frames": 0}}


@pytest.mark.parametrize(
    ("made", "key", "hint"),
    [
        (config(ClassificationConfig()), "data.frames=8", "task=classification is for images"),
        (config(**IMAGES), "data.frames=0", "task=video is for clips"),
        (config(model={"temporal_patch": 0}), "data.frames=8", "set model.temporal_patch=2"),
        (config(SimMIMConfig(), data={"frames": 0}), "model.temporal_patch=2", "data.frames=0 reads images"),
        (config(data={"frames": 7}), "data.frames=7", "multiple of model.temporal_patch=2, such as 8"),
        (config(data={"frames": -2}), "data.frames=-2", "at least 0"),
        (config(data={"frame_stride": 0}), "data.frame_stride=0", "at least 1"),
        (config(model={"in_channels": 4}), "model.in_channels=4", "have 3 channels"),
        (config(data={"scale": [0, 1]}), "data.scale=[0, 1]", "reads videos; set null"),
        (config(data={"image": "left.png"}), "data.image=left.png", "reads videos; set null"),
        (config(data={"scaled_decoding": True}), "data.scaled_decoding=true", "reads videos; set false"),
        (config(data={"augment": AugmentConfig(transform="own")}), "data.augment.transform=own", "needs clips"),
    ],
)
def test_contradictions_are_rejected(made: Config, key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_clips(made)
    assert str(error.value).startswith(f"{key}: ")
    assert hint in str(error.value)


def test_probes_are_for_images() -> None:
    made = config(SimMIMConfig())
    made.probe = ProbeConfig(shards="x", eval_shards="y")
    with pytest.raises(ConfigError, match="probes read images"):
        check_clips(made)


class _Own(TaskConfig):
    CLIPS = ALWAYS
    name = "own"


@pytest.mark.parametrize(
    "made",
    [
        config(),
        config(SimMIMConfig()),
        config(SimMIMConfig(), **IMAGES),
        config(ClassificationConfig(), **IMAGES),
        config(_Own()),
    ],
)
def test_what_agrees_is_accepted(made: Config) -> None:
    check_clips(made)


@pytest.mark.parametrize(("views", "counts"), [("1x1", (1, 1)), ("4x3", (4, 3)), ("10x1", (10, 1))])
def test_views(views: str, counts: tuple[int, int]) -> None:
    made = config(VideoConfig(num_classes=10, views=views))
    made.task.validate(made)
    assert made.task.view_counts == counts
    assert made.task.evaluation_settings() == {"views": views}


@pytest.mark.parametrize("views", ["", "4", "4x", "0x1", "4x0", "4X3", "4x3x2", "-1x1", "99999x1"])
def test_other_texts_are_rejected(views: str) -> None:
    made = config(VideoConfig(num_classes=10, views=views))
    with pytest.raises(ConfigError, match="must be clips times crops, such as 4x3"):
        made.task.validate(made)


def test_several_crops_need_the_center_mode() -> None:
    made = config(VideoConfig(num_classes=10, views="2x3"), data={"crop_mode": "squash"})
    with pytest.raises(ConfigError, match=r"several crops need data\.crop_mode=center, not squash"):
        made.task.validate(made)
    made.task.views = "2x1"
    made.task.validate(made)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 50])
def test_dropout_is_a_fraction(dropout: float) -> None:
    made = config(VideoConfig(num_classes=10, dropout=dropout))
    with pytest.raises(ConfigError, match=r"task\.dropout"):
        made.task.validate(made)


def test_the_texts_of_a_video_task() -> None:
    made = config(VideoConfig(num_classes=10, views="4x3"), data={"crop_pct": 1.0})
    words = made.task.describe(made).words
    assert words == "clips of 8 frames at stride 2, 10 classes, dropout 0.5, 4x3 views in evaluation"
    assert made.task.preparation(made) == (
        "4 clips of 8 frames at stride 2, 3 crops of 64x64 pixels (1 of the shorter side)"
    )
    assert made.task.training_preparation(made)[0] == ("random clip", "clips of 8 frames at stride 2")
    assert made.task.metrics() == ("loss", "top1", "top5", "clip_top1", "mean_class_accuracy", "ece")
    assert set(made.task.metrics()) <= set(made.task.METRICS)
    assert VideoConfig(num_classes=3, multi_label=True).metrics() == ("loss", "mAP", "f1")


def test_simmim_on_clips_counts_its_larger_decoder() -> None:
    clips, images = config(SimMIMConfig()), config(SimMIMConfig(), **IMAGES)
    assert clips.task.head_macs(clips) == 2 * 4 * images.task.head_macs(images)  # frames per token, tokens along time
    assert "the same in all 8 frames" in clips.task.describe(clips).words
    decoder, token_mask, pixels = 4 * 4 * 2 * 2 * 768, 16 * 16, (4 * 3 * 8 + 1) * 64 * 64
    assert clips.task.head_bytes(clips, 4) == decoder + token_mask + pixels
