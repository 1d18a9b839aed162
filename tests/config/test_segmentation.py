"""The section of segmentation: doubts, what the data completes, and the size of its decoders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from swinv2_train.config.data import AugmentConfig, DataConfig
from swinv2_train.config.model import ModelConfig, variant
from swinv2_train.config.schema import Config, EngineConfig
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.data.card import Card


def config(model: dict[str, Any] | None = None, *, data: dict[str, Any] | None = None, **task: Any) -> Config:
    section = SegmentationConfig(**{"num_classes": 10} | task)
    settings = DataConfig(**{"resolution": 256} | (data or {}))
    return Config(model=ModelConfig(**{"window": 8} | (model or {})), task=section, data=settings)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (config(ignore_index=3), "task.ignore_index=3 is one of the 10 classes"),
        (config(dice_weight=50.0), "task.dice_weight=50 is far above what is usual, 1"),
        (config(auxiliary_weight=40.0), "task.auxiliary_weight=40 is far above what is usual, 0.4"),
        (config(focal_gamma=20.0), "task.focal_gamma=20"),
        (config(data={"augment": AugmentConfig(scale=[0.08, 1.0])}), "data.augment.scale=[0.08, 1.0] has no effect"),
        (config(data={"augment": AugmentConfig(ratio=[1.0, 1.0])}), "data.augment.ratio=[1.0, 1.0] has no effect"),
        (config(data={"crop_pct": 1.0}), "data.crop_pct=1.0 affects features alone"),
        (config(data={"crop_mode": "squash"}), "data.crop_mode=squash affects features alone"),
    ],
)
def test_what_is_odd_is_warned_of(made: Config, sentence: str) -> None:
    found = made.task.doubts(made)
    assert len(found) == 1
    assert sentence in found[0]


@pytest.mark.parametrize(
    "made",
    [
        config(),
        config(ignore_index=10),
        config({"window": [16, 16, 16, 8]}),
        config({"window": 16}),
    ],
)
def test_what_is_usual_is_not_warned_of(made: Config) -> None:
    assert made.task.doubts(made) == []


def test_compiled_blocks_and_images_of_many_sizes() -> None:
    made = config(data={"eval_shards": "x"})
    made.engine = EngineConfig(compile=True)
    assert "task.inference=slide evaluates in windows of one size" in made.task.doubts(made)[0]


def card(**maps: Any) -> Card:
    made = Card(class_names=["a", "b", "c"])
    made.label_maps = SimpleNamespace(**maps) if maps else None
    return made


@pytest.mark.parametrize(
    ("given", "saved", "facts", "completed"),
    [
        ({}, {}, card(ignore=255), (3, 255)),
        ({}, {}, card(ignore=65535), (3, 65535)),
        ({}, {}, card(), (3, 255)),
        ({}, {"num_classes": 4, "ignore_index": 9}, card(), (4, 9)),
        ({"num_classes": 255}, {}, None, (255, 255)),
        ({"num_classes": 256}, {}, None, (256, 65535)),
        ({"num_classes": 5, "ignore_index": 0}, {}, card(ignore=255), (5, 0)),
    ],
)
def test_the_data_completes_classes_and_ignored_value(
    given: dict[str, int], saved: dict[str, int], facts: Card | None, completed: tuple[int, int]
) -> None:
    task = SegmentationConfig(**given)
    assert set(task.open_fields()) == {"num_classes", "ignore_index"} - given.keys()
    task.complete(saved, facts)
    assert (task.num_classes, task.ignore_index) == completed
    assert task.open_fields() == ()


def test_the_terms_of_the_loss_are_those_with_a_weight() -> None:
    assert SegmentationConfig().terms() == {"cross_entropy": 1.0, "auxiliary": 0.4}
    assert SegmentationConfig(auxiliary_weight=0, dice_weight=2).terms() == {"cross_entropy": 1.0, "dice": 2.0}


def test_for_evaluation_the_weights_of_the_training_are_left_out() -> None:
    task = SegmentationConfig(num_classes=3, class_weights=[1, 2, 3], ignore_index=9)
    assert task.for_evaluation(None) == SegmentationConfig(num_classes=3, ignore_index=9)
    assert task.for_evaluation(2) == SegmentationConfig(num_classes=2)


# Millions of parameters with UPerNet and the auxiliary decoder for 150 classes.
MILLIONS = {"tiny": 60.00, "small": 81.38, "base": 121.43, "large": 233.97, "huge": 704.55, "giant": 3057.75}


@pytest.mark.parametrize("size", MILLIONS)
def test_a_dry_run_counts_the_parameters_with_upernet(size: str) -> None:
    made = config(num_classes=150)
    made.model = variant(f"swinv2_{size}", window=8)
    described = made.task.describe(made)
    assert round(described.parameters / 1e6, 2) == pytest.approx(MILLIONS[size], abs=0.011)
    assert described.words == (
        "150 classes, decoder upernet of 512 channels, auxiliary loss times 0.4, the short side scaled by 0.5 to 2, "
        "photometric distortion, whole images in evaluation"
    )
