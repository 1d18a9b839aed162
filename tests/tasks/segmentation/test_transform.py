"""The transform of segmentation: one geometry for image and label map, drawn from the position alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from swinv2_train.config.data import AugmentConfig, DataConfig
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.data.batch import Ragged, collate
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import draw_part
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.value_range import ValueRange
from swinv2_train.tasks.segmentation.transform import SegmentationTransform, reference_factor
from tests.data.samples import encoded

HEIGHT, WIDTH = 60, 90


def blocks(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W) uint8: eight classes in blocks of 15 x 30 pixels."""
    rows, columns = np.arange(height)[:, None] // 15, np.arange(width)[None] // 30
    return ((rows * 2 + columns) % 8).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def sample(labels: np.ndarray | None = None, image: np.ndarray | None = None, **options: Any) -> Sample:
    """A sample whose image shows its classes: each is 30 brighter than the one before."""
    labels = blocks() if labels is None else labels
    image = (labels[..., None].repeat(3, axis=2) * 30).astype(np.uint8) if image is None else image
    members = {"image": encoded(image, "PNG"), "seg.png": png(labels)}
    return Sample(RawSample("a", "png", members), image.shape[-1], DecodeOptions(**options))


def transform(training: bool = True, ignore: int = 255, *, data: Any = None, **task: Any) -> SegmentationTransform:
    section = SegmentationConfig(**{"num_classes": 8, "photometric": False} | task)
    settings = DataConfig(**{"resolution": [32, 48]} | (data or {}))
    return SegmentationTransform(Config(task=section, data=settings), training=training, ignore=ignore)


def entries(made: SegmentationTransform, seed: int, of: Sample | None = None) -> dict[str, Tensor]:
    return made(of or sample(), np.random.default_rng(seed))


def test_image_and_label_map_stay_on_each_other() -> None:
    for number, flips in enumerate(({}, {"hflip": 1.0}, {"vflip": 1.0}, {"hflip": 1.0, "vflip": 1.0})):
        made = transform(scale=[0.5, 2.0], data={"augment": AugmentConfig(**{"hflip": 0.0} | flips)})
        for seed in range(10):
            found = entries(made, 10 * number + seed)
            assert found["image"].shape == (3, 32, 48)
            assert (found["label"].shape, found["label"].dtype) == ((32, 48), torch.uint8)
            height, width = found["size"].tolist()
            shown = (found["image"][0, :height, :width].float() / 30).round()
            label = found["label"][:height, :width]
            assert (shown == label).float().mean() > 0.85  # borders of classes are blurred
            assert (found["label"][height:] == 255).all()
            assert (found["label"][:, width:] == 255).all()
            assert not found["image"][:, height:].any()
            if height == 32 and width == 48:
                assert 255 not in found["label"]


def test_flips_follow_the_config() -> None:
    plain, turned = (transform(scale=[1.0, 1.0], resize="native", max_class_share=1.0, data={
        "resolution": [HEIGHT, WIDTH], "augment": AugmentConfig(hflip=probability, vflip=probability)
    }) for probability in (0.0, 1.0))  # fmt: skip
    whole, both = entries(plain, 0), entries(turned, 0)
    assert torch.equal(whole["label"], torch.from_numpy(blocks()))
    assert torch.equal(both["label"], whole["label"].flip(0, 1))
    assert torch.equal(both["image"], whole["image"].flip(1, 2))


def test_a_sample_depends_on_its_generator_alone() -> None:
    made = transform(photometric=True)
    first, again, other = (entries(made, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize(
    ("resize", "aspect", "source", "factor"),
    [
        ("short", 4.0, (64, 96), 0.5),
        ("short", 4.0, (96, 64), 0.5),
        ("short", 1.5, (32, 96), 0.5),
        ("short", 4.0, (16, 640), 0.2),
        ("native", 4.0, (16, 640), 1.0),
    ],
)
def test_the_reference_size(resize: str, aspect: float, source: tuple[int, int], factor: float) -> None:
    task = SegmentationConfig(resize=resize, max_aspect=aspect)
    assert reference_factor(source, (32, 48), task) == pytest.approx(factor)


def test_a_drawn_part_has_the_drawn_scale_and_every_place() -> None:
    rng, task = np.random.default_rng(0), SegmentationConfig()
    tops = set()
    for _ in range(500):
        source = tuple(rng.integers(40, 300, 2).tolist())
        factor = rng.uniform(0.5, 2.0) * reference_factor(source, (64, 64), task)
        crop = draw_part(source, (64, 64), factor, (False, False), rng)
        for axis in (0, 1):
            side, part, scaled = source[axis], crop.box[axis + 2], crop.scaled[axis]
            if part < side:
                assert scaled == 64
                assert scaled / part == pytest.approx(factor, rel=0.5 / part + 1e-6)
            else:
                assert scaled == min(64, round(side * factor))
    for _ in range(200):
        tops.add(draw_part((40, 40), (32, 32), 1.0, (False, False), rng).box[0])
    assert tops == set(range(9))


def rare(share: float, **task: Any) -> float:
    """The fraction of crops with more than `share` of one class, of images with a rare class in a corner."""
    labels = np.zeros((64, 64), np.uint8)
    labels[:24, :24] = 1
    made = transform(scale=[1.0, 1.0], resize="native", data={"resolution": 24}, **task)
    found = [entries(made, seed, sample(labels))["label"] for seed in range(100)]
    return float(np.mean([np.bincount(label.numpy().ravel()).max() > share * 24 * 24 for label in found]))


def test_crops_of_one_class_are_drawn_again() -> None:
    assert rare(0.75, max_class_share=1.0) > 0.7
    assert rare(0.75, max_class_share=0.75) < 0.5


def test_ignored_pixels_do_not_count_as_a_class() -> None:
    """A crop without any class is drawn again, too."""
    labels = np.full((64, 64), 255, np.uint8)
    labels[:24, :12], labels[:24, 12:24] = 0, 1
    limited, free = (
        transform(scale=[1.0, 1.0], resize="native", max_class_share=share, data={"resolution": 24})
        for share in (0.75, 1.0)
    )
    empty = [
        np.mean([(entries(made, seed, sample(labels))["label"] == 255).all() for seed in range(60)])
        for made in (limited, free)
    ]
    assert empty[0] < empty[1] / 2


def test_photometric_distortion_changes_colors_only() -> None:
    plain, colored = (transform(photometric=on, max_class_share=1.0) for on in (False, True))
    found = [(entries(plain, seed), entries(colored, seed)) for seed in range(8)]
    assert all(torch.equal(one["label"], two["label"]) for one, two in found)
    assert any(not torch.equal(one["image"], two["image"]) for one, two in found)


def test_any_number_of_channels_and_any_depth() -> None:
    labels = blocks().astype(np.uint16) * 100
    wide = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    buffer = io.BytesIO()
    np.save(buffer, wide)
    raw = RawSample("a", "npy", {"image": buffer.getvalue(), "seg.png": png(labels)})
    made = transform(ignore=65535, num_classes=800)
    found = entries(made, 0, Sample(raw, 4))
    assert (found["image"].dtype, found["image"].shape) == (torch.uint16, (4, 32, 48))
    assert found["label"].dtype == torch.int32
    assert set(found["label"].unique().tolist()) <= {*range(0, 800, 100), 65535}
    low = entries(transform(ignore=0, num_classes=800), 0, Sample(raw, 4))["label"]
    assert set(low.unique().tolist()) <= set(range(0, 800, 100)), "values above 255 with a small ignored value"
    assert low.max() > 255
    data = DataConfig(scale=[0, 30000])
    options = DecodeOptions(values=ValueRange.of(data, [0.5] * 4))
    scaled = entries(transform(ignore=65535, num_classes=800), 0, Sample(raw, 4, options))["image"]
    assert scaled.dtype == torch.float32
    assert 0 <= scaled.min() < scaled.max() <= 1


def test_only_the_part_under_the_crop_is_decoded_with_the_same_result() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    labels = blocks(128, 192)
    raw = RawSample("a", "jpg", {"image": encoded(image, quality=95), "seg.png": png(labels)})
    made = transform(scale=[1.0, 2.0], photometric=True)
    for seed in range(4):
        whole = entries(made, seed, Sample(raw, 3, DecodeOptions(parts=False)))
        part = entries(made, seed, Sample(raw, 3, DecodeOptions()))
        assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_an_image_that_is_decoded_at_a_fraction_of_its_size_stays_under_its_label_map() -> None:
    labels = blocks().repeat(8, 0).repeat(8, 1)[:477, :715]  # sides that are not multiples of the fraction
    image = (labels[..., None].repeat(3, axis=2) * 30).astype(np.uint8)
    raw = RawSample("a", "jpg", {"image": encoded(image, quality=95), "seg.png": png(labels)})
    made = transform(scale=[1.0, 2.0])
    for seed in range(6):
        found = entries(made, seed, Sample(raw, 3, DecodeOptions(scaled=True)))
        height, width = found["size"].tolist()
        shown = (found["image"][0, :height, :width].float() / 30).round()
        assert (shown == found["label"][:height, :width]).float().mean() > 0.85


def test_evaluation_resizes_the_image_and_keeps_the_label_map() -> None:
    for task, size in (
        ({"resize": "short"}, (32, 48)),
        ({"resize": "native"}, (60, 90)),
        ({"resize": "short", "max_aspect": 1.25}, (27, 40)),
    ):
        made = transform(training=False, **task)
        found = entries(made, 0)
        assert found["image"].shape == (3, *size)
        assert torch.equal(found["label"], torch.from_numpy(blocks()))
        assert made.ragged == ("image", "label")


def test_samples_form_a_batch() -> None:
    made = transform()
    deep = np.full((HEIGHT, WIDTH, 1), 1000, np.uint16)
    samples = [entries(made, seed, each) for seed, each in enumerate((sample(), sample(image=deep)))]
    samples[1]["image"] = samples[1]["image"].expand(3, -1, -1)
    batch = collate(samples, images=made.images, ragged=made.ragged)
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.uint16, torch.uint8)
    assert batch["size"].shape == (2, 2)
    made = transform(training=False)
    batch = collate([entries(made, 0), entries(made, 0)], images=made.images, ragged=made.ragged)
    assert isinstance(batch["image"], Ragged)
    assert [tuple(label.shape) for label in batch["label"]] == [(HEIGHT, WIDTH)] * 2


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"seg.png": None}, "it has no member seg.png"),
        ({"seg.png": b"nothing"}, "seg.png: "),
        ({"seg.png": png(blocks(61))}, "seg.png: it is 90 x 61, and the image is 90 x 60"),
        ({"seg.png": png(blocks() + 1)}, "seg.png: the value 8 is neither one of the 8 classes, from 0, nor 255"),
        ({"seg.png": png(blocks()[..., None].repeat(3, 2))}, "seg.png: png: it is RGB"),
        ({"image": b"nothing"}, ""),
    ],
)
def test_a_sample_that_cannot_be_used_is_broken(members: dict[str, bytes | None], reason: str) -> None:
    found = dict(sample().raw.members) | members
    raw = RawSample("a", "png", {name: data for name, data in found.items() if data is not None})
    for training in (True, False):
        made = transform(training, resize="native", scale=[1.0, 1.0], data={"resolution": [HEIGHT, WIDTH]})
        with pytest.raises(BrokenSample) as caught:
            entries(made, 0, Sample(raw, 3, declared=made.members))
        assert caught.value.reason.startswith(reason)


def test_other_members_are_not_read() -> None:
    made = SegmentationTransform(
        Config(model=ModelConfig(), task=SegmentationConfig(num_classes=8, label="mask.png")), training=True, ignore=255
    )
    assert made.members == ("image", "mask.png")
