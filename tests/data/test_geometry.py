"""One drawn crop, applied to image, label map, masks, and boxes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_train.config.schema import AugmentConfig
from swinv2_train.data.augment import eval_crop, normalise
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop, draw_crop, fixed_crop, pad, padded_image
from tests.data import plain_crop
from tests.data.crops import train_crop

SHAPES = [(30, 50), (50, 30), (20, 20), (7, 90), (90, 7), (1, 1), (64, 61)]
SIZES = [(24, 24), (16, 40), (40, 16), (5, 3), (33, 57)]


@pytest.mark.slow
def test_500_samples_are_cropped_as_before_to_the_bit() -> None:
    """Images and the generators afterwards: a pretraining that is resumed uses the same numbers."""
    for number in range(500):
        rng = np.random.default_rng(number)
        dtype, channels = (np.uint8, np.uint16)[number // 2 % 2], (1, 3, 4, 13)[number // 3 % 4]
        pixels = rng.integers(0, np.iinfo(dtype).max + 1, (*SHAPES[number % 7], channels), dtype=dtype)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        image = image.contiguous() if number % 3 else image.expand(3, -1, -1) if channels == 1 else image
        config = AugmentConfig(
            scale=[[0.08, 1.0], [0.67, 1.0], [1.0, 1.0]][number % 3],
            ratio=[[0.75, 4 / 3], [0.5, 2.0], [1.0, 1.0]][number // 5 % 3],
            hflip=(0.5, 0.0, 1.0)[number % 3],
            vflip=(0.0, 0.5, 1.0)[number // 2 % 3],
            interpolation=("bilinear", "bicubic")[number % 2],
        )
        size, ours, theirs = SIZES[number % 5], np.random.default_rng(number), np.random.default_rng(number)
        assert torch.equal(train_crop(image, size, config, ours), plain_crop.train_crop(image, size, config, theirs))
        assert ours.bit_generator.state == theirs.bit_generator.state
        mode, fraction = ("center", "squash")[number // 7 % 2], (0.875, 1.0, 0.5)[number % 3]
        if min(image.shape[-2:]) > 1:  # a longer side that would be scaled to nothing
            cropped = eval_crop(image, size, fraction, mode, config.interpolation)
            assert torch.equal(cropped, plain_crop.eval_crop(image, size, fraction, mode, config.interpolation))
            assert cropped.is_contiguous()


def crops(count: int) -> list[Crop]:
    """Crops of training and evaluation, flipped in every way, up to eight times larger or smaller."""
    found = []
    for number in range(count):
        source, size = SHAPES[number % 5], SIZES[number % 4]
        config = AugmentConfig(scale=[0.1, 1.0], hflip=0.5, vflip=0.5)
        found.append(draw_crop(source, size, config, np.random.default_rng(number)))
        found.append(fixed_crop(source, size, 0.875, ("center", "squash")[number % 2]))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"size": (9, 8)},
        {"corner": (1, 0)},
        {"corner": (0, -1), "size": (8, 7)},
        {"box": (0, 0, 11, 5)},
        {"box": (0, 6, 5, 5)},
    ],
)
def test_a_crop_outside_of_its_image_is_refused(changes: dict[str, Any]) -> None:
    fitting: dict[str, Any] = {"source": (10, 10), "box": (0, 0, 5, 5), "scaled": (8, 8), "size": (8, 8)}
    Crop(**fitting)
    with pytest.raises(ValueError, match="do not fit"):
        Crop(**fitting | changes)


def test_a_crop_is_a_value() -> None:
    crop = crops(1)[0]
    assert crop == crops(1)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        crop.size = (1, 1)  # type: ignore[misc]


@pytest.mark.slow
def test_every_pixel_of_a_label_map_is_the_one_under_its_center() -> None:
    for crop in crops(40):
        height, width = crop.source
        labels = torch.arange(height * width, dtype=torch.int32).view(height, width)
        found = crop.label_map(labels)
        assert found.shape == crop.size
        for row in range(crop.size[0]):
            for column in range(crop.size[1]):
                down = crop.size[0] - 1 - row if crop.vertical else row
                right = crop.size[1] - 1 - column if crop.horizontal else column
                y = crop.box[0] + (2 * (down + crop.corner[0]) + 1) * crop.box[2] // (2 * crop.scaled[0])
                x = crop.box[1] + (2 * (right + crop.corner[1]) + 1) * crop.box[3] // (2 * crop.scaled[1])
                assert found[row, column] == y * width + x
        for dtype in (torch.bool, torch.uint8, torch.uint16, torch.int64):
            masks = (labels % 3).to(dtype).expand(2, -1, -1)
            assert crop.label_map(masks).dtype == dtype
            assert torch.equal(crop.label_map(masks)[1].to(torch.int64), (found % 3).to(dtype).to(torch.int64))
        assert crop.label_map(labels.expand(0, -1, -1)).shape == (0, *crop.size)


def test_without_resizing_image_and_label_map_agree_to_the_pixel() -> None:
    pixels = torch.arange(48 * 60, dtype=torch.int32).view(1, 48, 60).to(torch.uint16)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        top, left = int(rng.integers(0, 48 - 20)), int(rng.integers(0, 60 - 30))
        flips = {"horizontal": bool(seed & 1), "vertical": bool(seed & 2)}
        crop = Crop((48, 60), (top, left, 20, 30), (20, 30), (10, 12), (4, 7), **flips)
        assert torch.equal(crop.image(pixels, "bilinear"), crop.label_map(pixels))


def test_boxes_are_the_extent_of_the_pixels_that_they_enclose() -> None:
    """Against masks, pixel by pixel: a pixel is set if and only if its center is inside the cropped box."""
    rng = np.random.default_rng(0)
    kept_boxes = dropped_boxes = 0
    for crop in crops(60):
        height, width = crop.source
        corners = np.sort(rng.integers(0, [[[width + 1], [height + 1]]], (12, 2, 2)), axis=2)
        boxes = torch.from_numpy(corners.transpose(0, 2, 1).reshape(-1, 4)).float()
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        found, kept = crop.boxes(boxes, min_size=2.0)
        assert found.dtype == torch.float32
        extent = torch.tensor([crop.size[1], crop.size[0]] * 2)
        assert bool(((found >= 0) & (found <= extent)).all())
        assert bool(((found[:, 2:] - found[:, :2]) >= 2).all())
        y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in crop.size)
        for mask, (left, top, right, bottom) in zip(crop.label_map(masks[kept]), found.double(), strict=True):
            inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
            on_edge = ((y - top).abs().minimum((y - bottom).abs()) < 1e-4)[:, None]
            on_edge = on_edge | ((x - left).abs().minimum((x - right).abs()) < 1e-4)
            assert bool((mask == inside)[~on_edge].all())
        gone = sorted(set(range(len(boxes))) - set(kept.tolist()))
        for mask in crop.label_map(masks[gone]):
            rows, columns = mask.any(dim=1).sum(), mask.any(dim=0).sum()
            assert min(int(rows), int(columns)) <= 2, "a dropped box encloses at most two rows or columns of pixels"
        kept_boxes, dropped_boxes = kept_boxes + len(kept), dropped_boxes + len(gone)
    assert kept_boxes > 300
    assert dropped_boxes > 300


def test_boxes_outside_of_empty_sets_and_without_area() -> None:
    crop = Crop((10, 20), (2, 4, 4, 8), (8, 16), (8, 16))
    assert [part.shape for part in crop.boxes(torch.zeros(0, 4))] == [(0, 4), (0,)]
    boxes = torch.tensor([[0, 0, 4, 10], [0, 0, 20, 10], [5, 3, 5, 6], [11.5, 2, 20, 6], [float("nan")] * 4])
    found, kept = crop.boxes(boxes)
    assert kept.tolist() == [1, 3]
    assert found.tolist() == [[0, 0, 16, 8], [15, 0, 16, 8]]
    mirrored = dataclasses.replace(crop, horizontal=True, vertical=True)
    assert mirrored.boxes(torch.tensor([[4.0, 2, 6, 3]]))[0].tolist() == [[12, 6, 16, 8]]


def test_a_label_map_of_another_size_breaks_the_sample() -> None:
    crop = fixed_crop((30, 50), (8, 8), 0.875, "center")
    with pytest.raises(BrokenSample, match="its label map or mask is 30 x 50, and its crop was drawn for 50 x 30"):
        crop.label_map(torch.zeros(50, 30))
    with pytest.raises(BrokenSample, match="its image is"):
        crop.image(torch.zeros(1, 50, 30), "bilinear")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_padding_is_zero_after_normalization(dtype: type) -> None:
    rng = np.random.default_rng(0)
    images = [
        torch.from_numpy(rng.integers(0, np.iinfo(dtype).max + 1, (3, *size), dtype=dtype))
        for size in ((5, 9), (8, 4), (8, 9), (1, 1))
    ]
    entries = [padded_image(image, (8, 9)) for image in images]
    batch = {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    together = normalise(batch["image"], mean, std, batch["size"])
    assert together.shape == (4, 3, 8, 9)
    for image, entry, found in zip(images, entries, together, strict=True):
        expected = torch.zeros(3, 8, 9)
        expected[:, : image.shape[1], : image.shape[2]] = normalise(image, mean, std)
        assert torch.equal(found, expected)
        assert torch.equal(normalise(entry["image"], mean, std, entry["size"]), expected)
        assert not torch.signbit(found[expected == 0]).any()
    clip = normalise(batch["image"][:, None].expand(-1, 2, -1, -1, -1), mean, std, batch["size"][:, None])
    assert torch.equal(clip[:, 1], together)


def test_label_maps_are_padded_with_the_ignored_index() -> None:
    labels = torch.tensor([[1, 2]], dtype=torch.uint16)
    assert pad(labels, (2, 3), 65535).tolist() == [[1, 2, 65535], [65535] * 3]
    assert pad(torch.ones(0, 1, 2, dtype=torch.bool), (2, 3)).shape == (0, 2, 3)
    with pytest.raises(ValueError, match="an image of 2 x 1 does not fit on a canvas of 1 x 4"):
        pad(labels, (4, 1))
