"""The section of detection: refusals, doubts, what the data completes, and the size of the published models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from swinv2_train.config.data import AugmentConfig, DataConfig
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, count_parameters, variant
from swinv2_train.config.schema import Config, EngineConfig
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.config.validate import validate
from tests.config.quickly import assert_refused, quickly

BASE = ["task=detection", "task.num_classes=10", "optim.epochs=1", "data.resolution=256"]
MASK_RCNN: dict[str, Any] = {"detector": "mask_rcnn", "box_head": "2fc"}
LARGE = {"resolution": [800, 1333]}
HTC: dict[str, Any] = {"detector": "htc", "class_agnostic": True, "semantic_classes": 183}


def config(*, data: dict[str, Any] | None = None, **task: Any) -> Config:
    section = DetectionConfig(**{"num_classes": 80, "masks": True} | task)
    return Config(model=ModelConfig(), task=section, data=DataConfig(**{"resolution": 512} | (data or {})))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["task.num_classes=-1"], ["task.num_classes=-1", "at least 0"]),
        (["task.label=objects"], ["task.label=objects", "such as objects.json"]),
        (["data.label=cls"], ["data.label=cls", "task.label names the member"]),
        (["task.detector=detr"], ["task.detector=detr", "mask_rcnn, cascade, htc"]),
        (["task.category_ids=[1,2]"], ["task.category_ids=[1, 2]", "for each class of task.num_classes"]),
        (["task.num_classes=2", "task.category_ids=[3,3]"], ["task.category_ids=[3, 3]", "a different id"]),
        (["task.tile=0"], ["task.tile=0", "at least 1"]),
        (["task.tile_overlap=1"], ["task.tile_overlap=1.0", "at least 0 and below 1"]),
        (["task.shown_score=1.5"], ["task.shown_score=1.5"]),
        (["task.box_head=3fc"], ["task.box_head=3fc", "4conv1fc, 2fc"]),
        (["task.head_norm=batch"], ["task.head_norm=batch", "group, none"]),
        (["task.box_loss=l1"], ["task.box_loss=l1", "giou, smooth_l1"]),
        (["task.scaling=long"], ["task.scaling=long", "jitter, short"]),
        (["task.channels=0"], ["task.channels=0", "at least 1"]),
        (["task.box_weight=0"], ["task.box_weight=0.0", "above 0"]),
        (["task.semantic_classes=9"], ["task.semantic_classes=9", "task.detector=htc", "this is cascade; set it to 0"]),
        (["task.detector=htc", "task.semantic_classes=256"], ["task.semantic_classes=256", "at most 255"]),
        (["task.detector=htc", "task.semantic_classes=9", "task.semantic_weight=0"], ["task.semantic_weight=0.0"]),
        (["task.semantic_label=seg"], ["task.semantic_label=seg", "such as seg.png"]),
        (["task.semantic_label=x.png", "data.image=x.png"], ["task.semantic_label=x.png", "not the image"]),
        (["task.anchor_scale=0"], ["task.anchor_scale=0.0", "above 0"]),
        (["task.anchor_scale=100"], ["task.anchor_scale=100.0", "400 pixels", "256x256", "task.outside_anchors=true"]),
        (["task.anchor_ratios=[]"], ["task.anchor_ratios=[]", "such as [0.5,1.0,2.0]"]),
        (["task.roi_samples=0"], ["task.roi_samples=0", "at least 1"]),
        (["task.stage_ious=[]"], ["task.stage_ious=[]", "1 to 3 numbers"]),
        (["task.stage_ious=[0.5,0.6,0.7,0.8]"], ["0.8", "1 to 3 numbers"]),
        (["task.stage_ious=[50]"], ["task.stage_ious=[50.0]", "between 0 and 1"]),
        (["task.stage_weights=[1,0.5]"], ["task.stage_weights=[1.0, 0.5]", "3 numbers above 0"]),
        (["task.stage_weights=[1,0.5,0]"], ["3 numbers above 0"]),
        (["task.scale=[2,0.1]"], ["task.scale=[2.0, 0.1]", "a pair [low, high] of factors above 0, low first"]),
        (["task.short_sides=[]"], ["task.short_sides=[]", "such as [480,512,544]"]),
        (["task.scaling=short", "task.long_side=700"], ["task.long_side=700", "largest of task.short_sides, 800"]),
        (["task.scale=0"], ["task.scale=0: must be a pair of values: write task.scale=[0.", "], for example"]),
        (["task.crop_sides=[600]"], ["task.crop_sides=[600]", "such as [384,600], or []"]),
        (["task.crop_short_sides=[0]"], ["task.crop_short_sides=[0]", "such as [400,500,600]"]),
        (["task.copy_paste=50"], ["task.copy_paste=50.0", "50% is 0.5"]),
        (["task.copy_paste=0.5", "task.masks=false"], ["task.copy_paste=0.5", "task.masks=false has none"]),
        (["task.copy_paste=0.5", "optim.global_batch=15"], ["optim.global_batch=15", "must be even", "use 16"]),
        (["data.augment.transform=mine"], ["data.augment.transform=mine", "the boxes cannot follow"]),
        (["task.score_threshold=5"], ["task.score_threshold=5.0", "5% is 0.05"]),
        (["task.nms=2"], ["task.nms=2.0", "from 0 to 1"]),
        (["task.max_detections=0"], ["task.max_detections=0", "at least 1"]),
        (["task.test_short=800", "task.test_long=600"], ["task.test_long=600", "at least task.test_short=800"]),
        (["task.test_short=0"], ["task.test_short=0", "at least 1"]),
        (["task.test_scales=[]"], ["task.test_scales=[]", "such as [0.75,1.0,1.25]"]),
    ],
)
def test_detection_is_refused_in_one_sentence(overrides: list[str], parts: list[str]) -> None:
    assert_refused(BASE, overrides, parts)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["task.num_classes=0", "task.masks=false", "task.anchor_scale=100", "task.outside_anchors=true"],
        ["task.detector=mask_rcnn", "task.stage_weights=[1]", "task.label=boxes.json", "task.max_objects=5"],
        ["task.detector=htc", "task.semantic_classes=255", "task.scaling=short", "task.crop_sides=[384,600]"],
        ["task.num_classes=1", "task.copy_paste=1", "task.test_long=100"],
    ],
)
def test_detection_that_can_be_run_is_not_refused(overrides: list[str]) -> None:
    validate(quickly(BASE, overrides))


def compiled(**task: Any) -> Config:
    made = config(**task)
    made.engine = EngineConfig(compile=True)
    return made


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (config(box_weight=1.0), "task.box_weight=1 is far from the usual 10 of giou"),
        (config(box_loss="smooth_l1"), "task.box_weight=10 is far from the usual 1 of smooth_l1"),
        (config(**HTC, semantic_weight=20.0), "task.semantic_weight=20 is far above what is usual, 0.2"),
        (config(stage_ious=[0.7, 0.6, 0.5]), "task.stage_ious=[0.7, 0.6, 0.5] do not increase"),
        (config(data={"augment": AugmentConfig(scale=[0.08, 1.0])}), "data.augment.scale=[0.08, 1.0] has no effect"),
        (config(data={"crop_pct": 1.0}), "data.crop_pct=1.0 affects features alone"),
        (
            config(scaling="short", data={"resolution": 224}),
            "have up to 800x1333 pixels; set data.resolution=[800,1333]",
        ),
        (
            config(scaling="short", scale=[0.5, 1.0], data=LARGE),
            "task.scale=[0.5, 1.0] has no effect with task.scaling=short",
        ),
        (config(long_side=900), "task.long_side=900 has no effect with task.scaling=jitter"),
        (compiled(scaling="short", data=LARGE), "images of a training have many sizes"),
        (compiled(data={"eval_shards": "x"}), "images of an evaluation have many sizes"),
    ],
)
def test_what_is_odd_is_warned_of(made: Config, sentence: str) -> None:
    found = made.task.doubts(made)
    assert len(found) == 1
    assert sentence in found[0]


@pytest.mark.parametrize("made", [config(), config(**HTC, box_loss="smooth_l1", box_weight=1.0), compiled()])
def test_what_is_usual_is_not_warned_of(made: Config) -> None:
    assert made.task.doubts(made) == []


def card(ids: tuple[Any, ...] = (), **objects: Any) -> Any:
    categories = [SimpleNamespace(id=each) for each in ids]
    facts = SimpleNamespace(categories=categories, **objects) if objects else None
    return SimpleNamespace(num_classes=7, objects=facts, label_maps=None)


@pytest.mark.parametrize(
    ("given", "saved", "facts", "completed"),
    [
        ({}, {}, card(all_masks=True), (7, True)),
        ({}, {"masks": True}, card(all_masks=False), (7, False)),
        ({}, {"num_classes": 4, "masks": True}, None, (4, True)),
        ({"num_classes": 5}, {}, None, (5, False)),
        ({"num_classes": 5, "masks": True}, {}, card(all_masks=False), (5, True)),
        ({"num_classes": 5, "label": "mine.json"}, {}, card(all_masks=True), (5, False)),
    ],
)
def test_the_data_completes_classes_and_masks(
    given: dict[str, Any], saved: dict[str, Any], facts: Any, completed: tuple[int, bool]
) -> None:
    task = DetectionConfig(**given)
    assert set(task.open_fields()) == {"num_classes", "masks"} - given.keys()
    task.complete(saved, facts)
    assert (task.num_classes, task.masks) == completed
    assert task.open_fields() == ()


@pytest.mark.parametrize(
    ("saved", "facts", "expected"),
    [
        ([1, 90], card((3, 7), all_masks=True), [3, 7]),
        ([1, 90], None, [1, 90]),
        (None, card((None, None), all_masks=True), None),
        (None, card(("a", "b"), all_masks=True), None),
        ([1, 2, 3], None, None),
    ],
)
def test_the_data_completes_the_ids_of_the_categories(saved: Any, facts: Any, expected: list[int] | None) -> None:
    task = DetectionConfig(num_classes=2)
    task.complete({"category_ids": saved}, facts)
    assert task.category_ids == expected
    assert task.for_evaluation(2).category_ids == expected
    assert task.for_evaluation(3).category_ids is None


def test_the_semantic_branch_has_the_classes_of_the_label_maps() -> None:
    facts = SimpleNamespace(num_classes=3)
    data = SimpleNamespace(num_classes=7, objects=None, label_maps=facts)
    for given in ({"semantic_classes": 3}, {}, {"semantic_classes": 2, "semantic_label": "other.png"}):
        DetectionConfig(**given).complete({}, data)
    with pytest.raises(ConfigError, match=r"task\.semantic_classes=2: the label maps of data\.shards have 3 classes"):
        DetectionConfig(semantic_classes=2).complete({}, data)
    facts.num_classes = None  # not one pixel has a class
    DetectionConfig(semantic_classes=2).complete({}, data)


def test_terms_and_metrics_follow_stages_and_masks() -> None:
    assert DetectionConfig(masks=True, stage_ious=[0.5, 0.6]).terms() == {
        "rpn_class": 1, "rpn_box": 1, "class_1": 1, "box_1": 10, "mask_1": 1, "class_2": 0.5, "box_2": 5, "mask_2": 0.5,
    }  # fmt: skip
    boxes = DetectionConfig(masks=False, detector="mask_rcnn", box_weight=1.0)
    assert boxes.terms() == {"rpn_class": 1, "rpn_box": 1, "class_1": 1, "box_1": 1}
    assert DetectionConfig(masks=False, **HTC).terms()["semantic"] == 0.2
    assert boxes.metrics()[0] == "box_ap"
    assert len(boxes.metrics()) == 12
    assert DetectionConfig().metrics()[12] == "mask_ap"
    assert boxes.METRICS.keys() == set(DetectionConfig().metrics())


def test_the_size_of_images_in_evaluation() -> None:
    """Without a size of its own, an image fits in the canvas of the training, whichever way both lie."""
    lying, upright = (config(data={"resolution": sides}) for sides in ([320, 480], [480, 320]))
    sizes = {(600, 900): (320, 480), (900, 600): (320, 213), (500, 500): (320, 320), (300, 900): (160, 480)}
    for source, size in sizes.items():
        assert lying.task.test_size(lying, source) == size
        assert upright.task.test_size(upright, source[::-1]) == size[::-1]
    assert lying.task.test_size(lying, (900, 600), 1.5) == (480, 320)
    assert lying.task.test_sides(lying) is None
    assert lying.task.preparation(lying) == "largest size within 320 x 480 pixels"
    for sides, source, size in (
        ({"test_short": 240}, (600, 900), (240, 360)), ({"test_short": 240}, (900, 600), (360, 240)),
        ({"test_short": 600}, (600, 900), (400, 600)), ({"test_long": 400}, (900, 600), (400, 267)),
        ({"test_long": 200}, (900, 900), (200, 200)),
    ):  # fmt: skip
        one = config(data={"resolution": [320, 480]}, **sides)
        assert one.task.test_size(one, source) == size
    short = config(scaling="short")
    assert short.task.test_sides(short) == (800, 1333)
    assert short.task.test_size(short, (480, 640)) == (800, 1067)
    assert short.task.test_size(short, (640, 480), 0.5) == (533, 400)
    both = config(scaling="short", test_short=640, test_long=900, test_scales=[1.0, 1.5], test_flip=True)
    assert both.task.preparation(both) == (
        "short side 640 pixels, longer side at most 900, scales 1, 1.5, with mirrored images"
    )
    assert both.task.for_evaluation(3).num_classes == 3
    assert both.task.for_evaluation(None) is both.task


def test_enlarged_images_follow_the_resolution_or_their_sides() -> None:
    assert config().task.scaled_images(config(), 1.5) is None
    short = config(scaling="short")
    assert short.task.scaled_images(short, 1.5) == ["task.test_short=1200", "task.test_long=2000"]
    fixed = config(test_short=1100, test_long=1833)
    assert fixed.task.scaled_images(fixed, 1.0) == ["task.test_short=1100", "task.test_long=1833"]


# Millions of parameters for 80 classes, with masks: V2 in the order of the sizes, and V1's T, S, and B as published.
MODELS: dict[str, tuple[dict[str, Any], list[float], list[float]]] = {
    "Mask R-CNN": (MASK_RCNN, [47.85, 69.23, 107.29, 215.85, 676.48, 3019.72], [47.79, 69.11, 107.14]),
    "Cascade R-CNN": ({}, [85.69, 107.07, 145.13, 253.68, 714.32, 3057.56], [85.63, 106.95, 144.98]),
    "HTC": (HTC, [87.65, 109.03, 147.09, 255.65, 716.28, 3059.52], [87.59, 108.91, 146.94]),
    "HTC++": (HTC | {"global_attention": True}, [94.7, 116.1, 159.7, 284.0, 811.5, 3260.9], [94.7, 116.0, 159.5]),
}
V1 = (27_519_354, 48_837_258, 86_743_224)
"""Parameters of Swin V1 with its final norm, as of torchvision's models without their heads."""


@pytest.mark.parametrize("name", MODELS)
def test_a_dry_run_counts_the_parameters_of_the_published_models(name: str) -> None:
    settings, second, first = MODELS[name]
    digits = 1 if name == "HTC++" else 2
    for number, size in enumerate(("tiny", "small", "base", "large", "huge", "giant")):
        made = config(**settings)
        made.model = variant(f"swinv2_{size}", window=8)
        described = made.task.describe(made)
        assert round(described.parameters / 1e6, digits) == second[number]
        assert described.words.startswith(f"80 classes, {name} of ")
        if number < 3:
            head = described.parameters - count_parameters(made.model, (512, 512))
            assert round((V1[number] + head) / 1e6, digits) == first[number]


def test_a_dry_run_describes_the_detector() -> None:
    made = config(masks=None, num_classes=0, scaling="short", global_attention=True, copy_paste=0.5)
    assert made.task.describe(made).words == (
        "number of classes from the data, Cascade R-CNN of 3 stages with 4conv1fc heads of 256 channels, masks if the "
        "data has them, global attention, short side 480 to 800, at most 1333, objects pasted into 50% of the images"
    )
    one = config(**MASK_RCNN | {"masks": False})
    assert one.task.describe(one).words == (
        "80 classes, Mask R-CNN of 1 stage with 2fc heads of 256 channels, boxes only, scaled by 0.1 to 2"
    )
