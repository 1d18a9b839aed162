"""Rates, statistics and shares that contradict each other are refused; what is merely odd is warned of."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from swinv2_train.config.compose import compose, experiments
from swinv2_train.config.doubts import doubts, doubts_of_data
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.config.section import flat
from swinv2_train.config.tasks import ClassificationConfig, SimMIMConfig, TaskConfig, VideoConfig
from swinv2_train.config.validate import MAY_BE_INFINITE, validate
from swinv2_train.data.card import Card
from swinv2_train.data.card_videos import VideoCounts
from swinv2_train.data.channel_statistics import resolve_statistics

SAMPLES = 1_281_167


def made(**values: Any) -> Config:
    """A valid config with some values changed, without composing: `optim__lr=1` is optim.lr."""
    config = Config(task=ClassificationConfig(num_classes=10))
    config.optim.epochs, config.optim.global_batch, config.optim.warmup_epochs = 100.0, 64, 5.0
    for name, value in values.items():
        section: Any = config
        *parts, leaf = name.split("__")
        for part in parts:
            section = getattr(section, part)
        setattr(section, leaf, value)
    return config


def test_the_config_of_these_tests_is_valid_and_without_doubts() -> None:
    config = made()
    validate(config)
    assert doubts(config, make_plan(config, 1, SAMPLES)) == []


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"data__mean": [123.675, 116.28, 103.53]}, ["data.mean=[123.675,116.28,103.53]", "[0.485,0.456,0.406]"]),
        ({"data__std": [58.395, 57.12, 57.375]}, ["data.std", "0 to 255", "data.std=[0.229,0.224,0.225]"]),
        ({"data__mean": [20000.0, 30000.0, 1.0]}, ["0 to 65535", "[0.3052,0.4578,1.526e-05]"]),
        ({"data__mean": [1e6, 0.5, 0.5]}, ["must be for values from 0 to 1"]),
        ({"data__mean": [-0.5, 0.5, 0.5]}, ["data.mean", "from 0 to 1"]),
        ({"data__mean": [math.nan, 0.5, 0.5]}, ["data.mean", "finite"]),
        ({"optim__min_lr": 1e-3}, ["optim.min_lr=0.001", "above optim.lr=0.0001"]),
        ({"optim__min_lr": 1e-3, "optim__schedule": "linear"}, ["optim.min_lr=0.001"]),
        ({"optim__warmup_lr": 1e-3}, ["optim.warmup_lr=0.001", "above optim.lr=0.0001"]),
        ({"optim__layer_decay": 1.25}, ["optim.layer_decay=1.25", "at most 1"]),
        ({"optim__layer_decay": 75.0}, ["optim.layer_decay=75.0", "75% is 0.75"]),
        ({"optim__gamma": 10.0}, ["optim.gamma=10.0", "10% is 0.1"]),
        ({"optim__betas": [0.999, 0.9]}, ["optim.betas=[0.999, 0.9]", "did you mean optim.betas=[0.9,0.999]?"]),
        ({"optim__milestones": [-3.0]}, ["optim.milestones=[-3.0]", "above 0"]),
        ({"optim__lr": math.inf}, ["optim.lr=inf", "finite"]),
        ({"optim__weight_decay": -0.1}, ["optim.weight_decay=-0.1"]),
        ({"optim__warmup_epochs": 200.0}, ["optim.warmup_epochs=200.0", "not shorter than the run"]),
        ({"data__augment__hflip": 50.0}, ["data.augment.hflip=50.0", "50% is 0.5"]),
        ({"data__crop_pct": 87.5}, ["data.crop_pct=87.5", "87.5% is 0.875"]),
        ({"data__max_broken_share": 5.0}, ["data.max_broken_share=5.0", "5% is 0.05"]),
        ({"task__label_smoothing": 10.0}, ["task.label_smoothing=10.0", "10% is 0.1"]),
        ({"task__mix_prob": 80.0}, ["task.mix_prob=80.0", "80% is 0.8"]),
        ({"model__drop_path": 20.0}, ["model.drop_path=20.0", "20% is 0.2"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_right_is_refused(values: dict[str, Any], parts: list[str]) -> None:
    def check() -> None:
        config = made(**values)
        validate(config)
        make_plan(config, 1, SAMPLES)

    with pytest.raises(ConfigError) as caught:
        check()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_config_may_be_infinite(number: float) -> None:
    for key, value in flat(made()).items():
        if not isinstance(value, float):
            continue
        config = made(**{key.replace(".", "__"): number})
        if number == math.inf and key in MAY_BE_INFINITE:
            validate(config)
        else:
            with pytest.raises(ConfigError, match=key):
                validate(config)


def test_the_statistics_of_a_card_are_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    monkeypatch.setattr(Card, "statistics", lambda self, channels: ([120.0] * 3, [60.0] * 3))
    with pytest.raises(ConfigError, match=r"0 to 255.*data.mean=\[0.4706,0.4706,0.4706\]"):
        resolve_statistics(made(data__mean="dataset").data, card, 3)


MULTISTEP = {"optim__schedule": "multistep", "optim__milestones": [700.0]}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({**MULTISTEP}, "optim.milestones: 700 epochs are not before the end of the run, 100 epochs"),
        ({**MULTISTEP}, "such as optim.milestones=[87], in epochs"),
        (
            {**MULTISTEP, "optim__epochs": None, "optim__steps": 500, "optim__warmup_epochs": None},
            "700 steps are not before",
        ),
        (
            {**MULTISTEP, "optim__epochs": None, "optim__steps": 10**6},
            "700 steps are in the warm-up or at the very beginn",
        ),
        ({"optim__lr": 1.0}, "the peak learning rate is 0.125 (optim.lr=1 for optim.lr_reference_batch=512 samples)"),
        ({"optim__weight_decay": 5.0}, "optim.weight_decay=5"),
        ({"optim__eps": 0.1}, "optim.eps=0.1"),
        ({"optim__ema_decay": 0.0001}, "set optim.ema_decay=0.9999"),
        ({"optim__epochs": 300000.0}, "optim.epochs=null optim.steps=300000"),
        ({"optim__layer_decay": 0.01}, "optim.layer_decay=0.01"),
        ({"model__temporal_window": 16}, "model.temporal_window=16 has no effect on a model of images"),
        ({"model__pretrained_temporal_window": [0, 4, 0, 0]}, "temporal_window=[0, 4, 0, 0] has no effect on a model"),
        ({"data__frame_stride": 5}, "data.frame_stride=5 has no effect on a model of images"),
        ({"task__mixup": 80.0}, "task.mixup=80 is far above"),
        ({"task__color_jitter": 40.0}, "task.color_jitter=40"),
        ({"task__label_smoothing": 0.9}, "task.label_smoothing=0.9"),
    ],
)
def test_what_is_odd_is_warned_of(values: dict[str, Any], sentence: str) -> None:
    config = made(**values)
    validate(config)
    assert any(sentence in line for line in doubts(config, make_plan(config, 1, SAMPLES)))


@pytest.mark.parametrize("task", [SimMIMConfig(), VideoConfig(num_classes=2)])
@pytest.mark.parametrize(
    ("stride", "sentence"),
    [
        (1, ""),  # clips of 4 frames
        (2, "at least 1 of 5 videos of data.shards is shorter than a clip of 7 frames (data.frames=4, data.frame_stri"),
        (5, "4 of 5 videos of data.shards are shorter than a clip of 16 frames"),
        (9, "at least 4 of 5 videos of data.shards are shorter than a clip of 28 frames"),
        (12, "5 of 5 videos of data.shards are shorter than a clip of 37 frames"),
    ],
)
def test_videos_that_are_shorter_than_a_clip_are_counted(task: TaskConfig, stride: int, sentence: str) -> None:
    lengths = Counter({1: 4, 16: 1})
    card = Card(videos=VideoCounts(videos=5, shortest=4, longest=30, lengths=lengths))
    config = made(task=task, data__frames=4, data__frame_stride=stride)
    (line,) = doubts_of_data(config, card) or [""]
    assert line.startswith(sentence)
    assert bool(line) == bool(sentence)
    assert doubts_of_data(config, None) == doubts_of_data(config, Card()) == []


@pytest.mark.parametrize("task", [ClassificationConfig(), VideoConfig()])
def test_classes_without_a_sample_are_named(task: TaskConfig) -> None:
    config, names = made(task=task), list("abcdefgh")
    card = Card(class_names=names, class_counts=Counter({0: 3, 7: 1}))
    (line,) = doubts_of_data(config, card)
    assert line.startswith("data.shards has samples of only 2 of its 8 classes; the others are not learned (b, c, d, ")
    assert "e, f, 1 more): add" in line
    assert doubts_of_data(config, Card(class_names=names)) == []  # nothing was counted
    assert doubts_of_data(config, Card(class_counts=Counter({0: 1, 1: 2}))) == []
    assert "(1): add" in doubts_of_data(config, Card(class_counts=Counter({0: 1, 2: 2})))[0]


def test_defaults_in_another_notation_are_not_doubted() -> None:
    config = made(model__temporal_window=[8, 8, 8, 8], model__pretrained_temporal_window=[0, 0, 0, 0])
    assert doubts(config, make_plan(config, 1, SAMPLES)) == []


@pytest.mark.slow
def test_no_recipe_is_doubted() -> None:
    for name, _ in experiments():
        config = compose([f"+experiment={name}"])
        assert doubts(config, make_plan(config, 1, config.data.expected_samples or SAMPLES)) == [], name


@pytest.mark.slow
def test_milestones_of_a_recipe_in_epochs_are_not_steps() -> None:
    steps = ["+experiment=simmim_tiny", "optim.epochs=null"]
    with pytest.raises(ConfigError, match=r"optim.milestones=\[700.*\]: are epochs in the recipe"):
        compose([*steps, "optim.steps=100000"])
    for more in (["optim.steps=100"], ["optim.steps=100000", "optim.milestones=[90000]"]):
        compose([*steps, *more])


def test_half_of_everything_and_no_normalization_at_all_are_statistics() -> None:
    for mean, std in (([0.5] * 3, [0.5] * 3), ([0.0] * 3, [1.0] * 3)):
        validate(made(data__mean=mean, data__std=std))
