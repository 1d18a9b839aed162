"""Masks of objects: every form gives the pixels that pycocotools gives, and a crop moves them as it moves the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as judge

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop
from swinv2_train.data.object_masks import (
    bitmap,
    crop_bitmaps,
    crop_window,
    cropped_polygons,
    encoded,
    mask_box,
    mask_window,
    rle_of,
)

SIZE = (37, 52)


def blobs(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A bitmap with runs of many lengths."""
    rng = np.random.default_rng(seed)
    return (rng.random(size) < rng.choice([0.0, 0.02, 0.5, 0.97, 1.0])).astype(np.uint8)


def polygons(seed: int) -> list[list[float]]:
    """One to three polygons that may leave the image."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(-9, 60, 2 * rng.integers(3, 9)).round(2).tolist() for _ in range(rng.integers(1, 4))]


@pytest.mark.parametrize("form", ["list", "str", "bytes"])
def test_run_lengths_of_every_form_are_one_mask(form: str) -> None:
    for seed in range(20):
        pixels = blobs(seed)
        text = judge.encode(np.asfortranarray(pixels))["counts"]
        changes = np.flatnonzero(np.diff(np.concatenate([[0], pixels.ravel(order="F")])))
        runs = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
        counts: Any = {"list": runs, "str": text.decode(), "bytes": text}[form]
        mask = {"size": list(SIZE), "counts": counts}
        assert rle_of(mask, SIZE) == encoded(pixels) == {"size": list(SIZE), "counts": text.decode()}
        assert bitmap(mask, SIZE).tolist() == pixels.tolist()


def test_polygons_of_several_parts_are_rasterized_as_by_the_judge() -> None:
    for seed in range(20):
        parts = polygons(seed)
        expected = judge.merge(judge.frPyObjects(parts, *SIZE))
        assert rle_of(parts, SIZE) == {"size": list(SIZE), "counts": expected["counts"].decode()}
        assert bitmap(parts, SIZE).tolist() == judge.decode(expected).tolist()


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ({"size": [52, 37], "counts": [1924]}, "its mask is for 37 x 52 pixels, and the image has 52 x 37"),
        ({"size": [37, 52], "counts": [3, 4]}, "the counts of its mask do not fill an image of 52 x 37 pixels"),
        ({"size": [37, 52], "counts": [1925, -1]}, "the counts of its mask do not fill"),
        ({"size": [37, 52], "counts": ""}, "the counts of its mask are damaged"),
        ({"size": [37, 52], "counts": "z" * 40}, "the counts of its mask are damaged"),
        ({"size": [37, 52], "counts": "P1é"}, "the counts of its mask are damaged"),
        ({"size": [37, 52], "counts": "P13"}, "the counts of its mask do not fill"),
    ],
)
def test_damaged_run_lengths_break_the_sample(mask: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokenSample, match=reason):
        bitmap(mask, SIZE)


def crops() -> list[Crop]:
    """Crops that cut, shrink, enlarge, and flip."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(8, SIZE[0] + 1), rng.integers(8, SIZE[1] + 1)
        box = (int(rng.integers(0, SIZE[0] - height + 1)), int(rng.integers(0, SIZE[1] - width + 1)))
        scaled = (int(height * rng.uniform(0.5, 3)), int(width * rng.uniform(0.5, 3)))
        size = (scaled[0] * 3 // 4, scaled[1] * 3 // 4)
        corner = (int(rng.integers(0, scaled[0] - size[0] + 1)), int(rng.integers(0, scaled[1] - size[1] + 1)))
        flips = [bool(bit) for bit in rng.integers(0, 2, 2)]
        found.append(Crop(SIZE, (*box, int(height), int(width)), scaled, size, corner, *flips))
    return found


def test_a_crop_takes_run_lengths_as_a_label_map_and_polygons_as_boxes() -> None:
    """The pixels of RLE are those of the crop of the bitmap; a rectangle as a polygon covers its cropped box."""
    pixels = blobs(2)
    for crop in crops():
        expected = crop.label_map(torch.from_numpy(pixels)).numpy()
        assert crop_bitmaps(encoded(pixels), SIZE, crop).tolist() == expected.tolist()
        left, top, right, bottom = 6.5, 5.0, 41.25, 30.0
        polygon = [[left, top, right, top, right, bottom, left, bottom]]
        found = crop_bitmaps(polygon, SIZE, crop)
        boxes, kept = crop.boxes(torch.tensor([[left, top, right, bottom]]), min_size=2.0)
        assert found.shape == crop.size
        if kept.numel():
            window = mask_window(found)
            box = boxes[0].tolist()
            assert np.abs(np.array([window[1], window[0], window[3], window[2]]) - box).max() <= 1.0


def test_a_cropped_polygon_is_rasterized_in_its_window_with_the_pixels_of_the_entire_image() -> None:
    rng = np.random.default_rng(0)
    outside = different = 0
    for crop in crops():
        for _ in range(4):
            parts = rng.uniform(-5, 60, (int(rng.integers(1, 3)), 2 * int(rng.integers(3, 8))))
            polygons = [part.round(2).tolist() for part in parts * rng.uniform(0.2, 1.0)]
            expected = bitmap(cropped_polygons(polygons, crop), crop.size)
            window, pixels = crop_window(polygons, SIZE, crop)
            assert window == mask_window(expected)
            different += int((pixels != expected[window[0] : window[2], window[1] : window[3]]).sum())
            outside += not pixels.size
    assert different <= 3  # corners that lie between two fifths of a pixel, to which the rasterizer rounds
    assert 0 < outside < 24


def test_windows_and_boxes_of_masks() -> None:
    pixels = np.zeros(SIZE, np.uint8)
    assert mask_window(pixels) == (0, 0, 0, 0)
    pixels[3:7, 10:12] = 1
    assert mask_window(pixels) == (3, 10, 7, 12)
    assert mask_box(encoded(pixels), SIZE) == (10, 3, 12, 7)
    assert mask_box([[1, 2, 9, 2, 5, 8], [3, 1, 4, 1, 4, 2.5]], SIZE) == (1, 1, 9, 8)
