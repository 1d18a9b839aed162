"""The transforms of detection: one geometry for image, boxes, and masks, drawn from seed and position alone."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from swinv2_train.config.data import AugmentConfig, DataConfig
from swinv2_train.config.schema import Config, OptimConfig
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.data.batch import Ragged, collate
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.object_masks import bitmap, encoded
from swinv2_train.data.objects import Objects
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.tasks.detection.annotations import Annotations
from swinv2_train.tasks.detection.drawing import Drawing
from swinv2_train.tasks.detection.transform import EvaluationTransform, TrainingTransform
from tests.data.samples import encoded as encoded_image

HEIGHT, WIDTH = 60, 90
BLOCKS = [(4, 6, 30, 20), (40, 10, 84, 50), (20, 34, 36, 56)]
"""Left, top, right, bottom. Object n is bright in channel n."""

UNCHANGED: dict[str, Any] = {"resolution": [HEIGHT, WIDTH], "augment": AugmentConfig(hflip=0.0)}


def scene(boxes: list[tuple[int, int, int, int]] = BLOCKS, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        image[top:bottom, left:right, number] = 240
    return image


def content(boxes: Any = BLOCKS, size: tuple[int, int] = (HEIGHT, WIDTH), rle: tuple[int, ...] = ()) -> dict[str, Any]:
    """The objects of `scene`; those in `rle` have run-length masks, the others polygons."""
    objects = []
    for number, (left, top, right, bottom) in enumerate(boxes):
        mask: Any = [[left, top, right, top, right, bottom, left, bottom]]
        if number in rle:
            pixels = np.zeros(size, np.uint8)
            pixels[top:bottom, left:right] = 1
            mask = encoded(pixels)
        area = (right - left) * (bottom - top)
        box = [left, top, right - left, bottom - top]
        one = {"bbox": box, "category": number, "iscrowd": 0, "area": area, "id": 10 + number, "segmentation": mask}
        objects.append(one)
    return {"id": "a7", "width": size[1], "height": size[0], "objects": objects}


def sample(
    image: np.ndarray | None = None, objects: dict[str, Any] | None = None, kind: str = "PNG", **options: Any
) -> Sample:
    image, objects = scene() if image is None else image, content(rle=(1,)) if objects is None else objects
    members = {"image": encoded_image(image, kind), "objects.json": json.dumps(objects).encode()}
    return Sample(RawSample("a", kind.lower(), members), image.shape[-1], DecodeOptions(**options))


def config(data: dict[str, Any] | None = None, **task: Any) -> Config:
    section = DetectionConfig(**{"num_classes": 3, "masks": True, "scale": [0.5, 2.0]} | task)
    settings = DataConfig(**{"resolution": [48, 64]} | (data or {}))
    return Config(task=section, data=settings, optim=OptimConfig(global_batch=4))


def training(**task: Any) -> TrainingTransform:
    return TrainingTransform(config(**task), [0.5] * 3)


def entries(made: TrainingTransform, seed: int, of: Sample | None = None) -> dict[str, Any]:
    of = of or sample()
    of.position, of.batch = seed, seed // 4
    return made(of, np.random.default_rng(seed))


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize(
    "task",
    [
        {},
        {"scaling": "short", "short_sides": [40, 64], "long_side": 100},
        {
            "scaling": "short",
            "short_sides": [48],
            "long_side": 90,
            "crop_sides": [20, 50],
            "crop_short_sides": [40, 70],
        },
    ],
)
@pytest.mark.parametrize("flips", [{"hflip": 0.0}, {"hflip": 1.0, "vflip": 1.0}])
def test_boxes_and_masks_stay_on_their_objects(task: dict[str, Any], flips: dict[str, float]) -> None:
    made = training(data={"augment": AugmentConfig(**flips)}, **task)
    cut = whole = 0
    for seed in range(12):
        found = entries(made, seed)
        tall, wide = found["image"].shape[1:]
        assert tall <= found["canvas"][0]
        assert wide <= found["canvas"][1]
        shown = found["image"].numpy() > 120
        annotations = Annotations.of_entries(found)
        for number, box, window, mask in zip(
            found["classes"].tolist(), found["boxes"].numpy(), annotations.windows, annotations.bitmaps, strict=True
        ):
            pixels = np.zeros((tall, wide), bool)
            pixels[window[0] : window[2], window[1] : window[3]] = mask
            assert (pixels ^ shown[number]).sum() <= 0.6 * (tall + wide)  # the border of an object is blurred
            assert (pixels & shown[number]).sum() > 0.5 * pixels.sum()
            extent = np.array([window[1], window[0], window[3], window[2]])
            assert np.abs(box - extent).max() <= 1.0
            touches = box[0] == 0 or box[1] == 0 or box[2] == wide or box[3] == tall
            cut, whole = cut + touches, whole + (not touches)
        assert {number for number in range(3) if shown[number].sum() > 30} <= set(found["classes"].tolist())
    assert whole
    if task.get("scaling") != "short" or "crop_sides" in task:
        assert cut


def test_a_flip_of_the_entire_image_is_exact() -> None:
    plain, turned = (
        training(scale=[1.0, 1.0], data={"resolution": [HEIGHT, WIDTH], "augment": AugmentConfig(hflip=p, vflip=p)})
        for p in (0.0, 1.0)
    )
    found, flipped = entries(plain, 0), entries(turned, 0)
    assert found["boxes"].tolist() == [list(map(float, box)) for box in BLOCKS]
    assert torch.equal(flipped["image"], found["image"].flip(1, 2))
    right, bottom = WIDTH - found["boxes"][:, 0], HEIGHT - found["boxes"][:, 1]
    assert torch.equal(flipped["boxes"][:, 2:], torch.stack([right, bottom], dim=1))
    windows = [[top, left, bottom, right] for left, top, right, bottom in BLOCKS]
    assert found["mask_windows"].tolist() == windows
    for mask, (top, left, bottom, right) in zip(Annotations.of_entries(found).bitmaps, windows, strict=True):
        assert mask.shape == (bottom - top, right - left)
        assert mask.all()


def test_the_box_of_a_cut_object_is_that_of_the_rest_of_its_mask() -> None:
    """A triangle, of which the crop leaves a narrow part of its box."""
    size = (60, 60)
    objects = content([(0, 0, 60, 60)], size)
    objects["objects"][0]["segmentation"] = [[0, 0, 60, 60, 0, 60]]
    made = training(num_classes=1, scale=[2.0, 2.0], data={"resolution": 48, "augment": AugmentConfig(hflip=0.0)})
    narrow = 0
    for seed in range(20):
        found = entries(made, seed, sample(np.zeros((*size, 3), np.uint8), objects))
        (window,) = found["mask_windows"].tolist() or [[]]
        if not window:
            assert not len(found["boxes"])  # the part has nothing of the triangle
            continue
        top, left, bottom, right = window
        assert found["boxes"][0].tolist() == pytest.approx([left, top, right, bottom], abs=1)
        narrow += right - left < 40 or bottom - top < 40
    assert narrow


def test_small_remains_crowds_and_objects_without_a_mask() -> None:
    objects = content()
    objects["objects"][0]["iscrowd"] = 1
    del objects["objects"][1]["segmentation"]
    made = training(scale=[1.0, 1.0], data=UNCHANGED)
    found = entries(made, 0, sample(objects=objects))
    assert found["crowd"].tolist() == [list(map(float, BLOCKS[0]))]
    assert found["classes"].tolist() == [1, 2]
    assert found["mask_windows"][0].tolist() == [0, 0, 0, 0]
    assert found["boxes"][0].tolist() == list(map(float, BLOCKS[1]))
    tiny = entries(training(scale=[0.05, 0.05]), 0)  # the objects have less than a pixel
    assert len(tiny["boxes"]) == len(tiny["mask_windows"]) < 3
    assert entries(training(max_objects=2), 3)["classes"].tolist() != []


def test_of_too_many_objects_the_largest_remain() -> None:
    made = training(max_objects=2, scale=[1.0, 1.0], data={"resolution": [HEIGHT, WIDTH]})
    found = entries(made, 0)
    assert found["classes"].tolist() == [0, 1]  # 364, 1760, and 352 pixels
    assert len(found["mask_windows"]) == 2
    boxes_only = entries(training(max_objects=1, masks=False, scale=[1.0, 1.0]), 0)
    assert boxes_only["classes"].tolist() == [1]
    assert "mask_bits" not in boxes_only


def test_only_the_part_under_the_crop_is_decoded_with_the_same_result() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    objects = content([(10, 20, 100, 90), (60, 40, 180, 120)], (128, 192))
    made = training(scale=[1.0, 2.0])
    for seed in range(3):
        whole = entries(made, seed, sample(image, objects, "JPEG", parts=False))
        assert equal(whole, entries(made, seed, sample(image, objects, "JPEG")))


def test_an_image_that_is_decoded_at_a_fraction_of_its_size_stays_under_its_boxes() -> None:
    size = (477, 715)  # sides that are not multiples of the fraction
    boxes = [(left * 8, top * 8, right * 8, bottom * 8) for left, top, right, bottom in BLOCKS[:2]]
    made = training(scale=[1.0, 2.0])
    for seed in range(4):
        found = entries(made, seed, sample(scene(boxes, size), content(boxes, size), "JPEG", scaled=True))
        shown = found["image"].numpy() > 120
        for number, (left, top, right, bottom) in zip(
            found["classes"].tolist(), found["boxes"].round().int().tolist(), strict=True
        ):
            inside = shown[number, top:bottom, left:right]
            assert inside.mean() > 0.9
            assert shown[number].sum() - inside.sum() < 0.15 * shown[number].sum() + 8


@pytest.mark.parametrize("scaling", ["jitter", "short"])
def test_a_sample_depends_on_its_seed_and_position_alone(scaling: str) -> None:
    made = training(scaling=scaling, short_sides=[40, 48, 56, 64, 72, 80], long_side=100)
    assert equal(entries(made, 5), entries(made, 5))
    assert not all(equal(entries(made, 5), entries(made, seed)) for seed in range(6, 12))
    if scaling == "jitter":
        assert {entries(made, seed)["canvas"] for seed in range(6)} == {(48, 64)}


def test_all_images_of_a_step_have_one_short_side_on_a_canvas_of_a_short_list() -> None:
    drawing = Drawing(config(scaling="short", short_sides=[40, 64, 90], long_side=120))
    rng = np.random.default_rng(0)
    canvases: dict[int, set[tuple[int, int]]] = {}
    for step in range(120):
        source = tuple(rng.integers(30, 200, 2).tolist())
        drawn = drawing.draw(source, step, np.random.default_rng(step))
        short = drawing.short_side(step)
        assert min(drawn.crop.size) == short or max(drawn.crop.size) in (119, 120, 121)
        assert max(drawn.crop.size) <= 120
        tall, wide = drawn.crop.size
        assert tall / wide == pytest.approx(source[0] / source[1], rel=0.05)
        assert all(side <= whole for side, whole in zip(drawn.crop.size, drawn.canvas, strict=True))
        assert all(side % 32 == 0 for side in drawn.canvas)
        canvases.setdefault(short, set()).add(drawn.canvas)
    assert set(canvases) == {40, 64, 90}
    assert all(len(found) <= 5 for found in canvases.values())
    assert {(64, 96), (96, 64)} <= canvases[64]


def test_a_semantic_label_map_follows_the_image() -> None:
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for number, (left, top, right, bottom) in enumerate(BLOCKS):
        labels[top:bottom, left:right] = number
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    made = training(detector="htc", semantic_classes=3)
    for seed in range(4):
        of = sample()
        of.raw.members["seg.png"] = buffer.getvalue()
        found = entries(made, seed, of)
        brightness, shown = found["image"].max(dim=0)
        assert found["semantic"].dtype == torch.uint8
        assert (torch.where(brightness < 120, 255, shown) == found["semantic"]).float().mean() > 0.85
    made = training(detector="htc", semantic_classes=2, scale=[1.0, 1.0])
    with pytest.raises(BrokenSample, match=r"seg\.png: the value 2 is neither one of the 2 semantic classes"):
        entries(made, 0, of)


def test_evaluation_keeps_the_objects_in_pixels_of_the_original() -> None:
    made = EvaluationTransform(config(test_short=30, test_long=40, test_scales=[1.0, 2.0]))
    of = sample()
    found = made(of, np.random.default_rng(0))
    assert found["image"].shape == (3, 27, 40)  # the longest side is the limit
    assert found["image_2"].shape == (3, 53, 80)
    record = found["record"]
    assert (record.image_id, record.size) == ("a7", (HEIGHT, WIDTH))
    assert record.truth.boxes.tolist() == [list(map(float, box)) for box in BLOCKS]
    for (left, top, right, bottom), mask in zip(BLOCKS, record.truth.masks, strict=True):
        pixels = bitmap(mask, (HEIGHT, WIDTH))
        assert pixels.sum() == pixels[top:bottom, left:right].sum() == (right - left) * (bottom - top)
    batch = collate([found, found], images=made.images, ragged=made.ragged)
    assert all(isinstance(batch[name], Ragged) for name in ("image", "image_2", "record"))
    bare = content()
    del bare["objects"][2]["segmentation"]
    with pytest.raises(BrokenSample, match=r"objects\.json: object 2 has no mask, which task\.masks=true requires"):
        made(sample(objects=bare), np.random.default_rng(0))
    nameless = content()
    nameless["id"] = None
    of = sample(objects=nameless)
    of.position = 4
    assert made(of, np.random.default_rng(0))["record"].image_id == 5
    assert EvaluationTransform(config(masks=False))(sample(), np.random.default_rng(0))["record"].truth.masks is None


def changed(**change: Any) -> dict[str, Any]:
    made = content(rle=(1,))
    made["objects"][1] |= change
    return made


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        (content(size=(WIDTH, HEIGHT)), "objects.json: it is for 60 x 90 pixels, and the image has 90 x 60"),
        (changed(category=3), "objects.json: category 3 is not one of the 3 classes, from 0"),
        (changed(segmentation={"size": [9, 9], "counts": "0"}), "objects.json: its mask is for 9 x 9 pixels"),
        (changed(bbox=[1, 2, 3]), "objects.json: object 1: its bbox"),
    ],
)
def test_a_sample_that_cannot_be_used_is_broken(objects: dict[str, Any], reason: str) -> None:
    made = (training(scale=[1.0, 1.0]), EvaluationTransform(config()))
    for transform in made:
        with pytest.raises(BrokenSample) as caught:
            transform(sample(objects=objects), np.random.default_rng(0))
        assert caught.value.reason.startswith(reason)
    missing = Sample(RawSample("a", "png", {"image": encoded_image(scene(), "PNG")}), 3, declared=made[0].members)
    with pytest.raises(BrokenSample, match=r"it has no member objects\.json"):
        made[0](missing, np.random.default_rng(0))


def test_an_image_without_objects_has_empty_entries() -> None:
    found = entries(training(), 0, sample(objects=content([])))
    assert [found[name].shape for name in ("boxes", "classes", "crowd", "mask_bits", "mask_windows")] == [
        (0, 4), (0,), (0, 4), (0,), (0, 4),
    ]  # fmt: skip
    other = entries(training(), 1)
    batch = collate([found, other], ragged=training().ragged)
    assert len(batch["boxes"][0]) == 0
    assert torch.equal(batch["boxes"][1], other["boxes"])
    assert {name: batch[name].flat.dtype for name in ("boxes", "classes", "mask_windows")} == {
        "boxes": torch.float32, "classes": torch.int64, "mask_windows": torch.int64,
    }  # fmt: skip


def test_objects_survive_their_json() -> None:
    """The transform reads the form that the packer writes."""
    made = Objects.from_json(content(rle=(1,)))
    assert Objects.from_json(json.loads(json.dumps(made.to_json()))).masks == replace(made).masks


@pytest.mark.parametrize(
    ("mode", "size"),
    [("RGB", (1, 1)), ("RGB", (20_000, 3)), ("L", (30, 20)), ("I;16", (30, 20)), ("RGBA", (30, 20)), ("P", (30, 20))],
)
@pytest.mark.parametrize("scaling", ["jitter", "short"])
def test_unusual_images_become_samples(mode: str, size: tuple[int, int], scaling: str) -> None:
    """Of the smallest size, very wide, gray, of 16 bits, with transparent pixels, and with a palette."""
    width, height = size
    picture, buffer = Image.new(mode, size, 0 if mode in ("L", "I;16", "P") else "blue"), io.BytesIO()
    picture.save(buffer, "PNG")
    objects = content([(0, 0, width, height)], (height, width))
    members = {"image": buffer.getvalue(), "objects.json": json.dumps(objects).encode()}
    made = config(scaling=scaling, short_sides=[32], long_side=64)
    for transform in (TrainingTransform(made, [0.5] * 3), EvaluationTransform(made)):
        found = transform(Sample(RawSample("a", "png", members), 3), np.random.default_rng(0))
        assert found["image"].shape[0] == 3
        assert found["image"].dtype == (torch.uint16 if mode == "I;16" else torch.uint8)
        assert min(found["image"].shape[1:]) >= 1
        if "record" in found:
            assert found["record"].truth.boxes.tolist() == [[0, 0, width, height]]
        else:
            assert all(side <= whole for side, whole in zip(found["image"].shape[1:], found["canvas"], strict=True))
