"""Pasted masks equal a plain definition per pixel, as the RLE that the judge writes, in parts of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as judge

from swinv2_train.data.object_masks import run_lengths
from swinv2_train.tasks.detection import masks as module
from swinv2_train.tasks.detection.masks import pasted, resampled, sampled


def plain(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The definition, pixel by pixel: interpolated between the centers of the cells, 0 outside."""
    cells = len(mask)
    around = np.zeros((cells + 4, cells + 4), np.float32)
    around[2:-2, 2:-2] = mask
    left, top, right, bottom = box.astype(np.float64)
    found = np.zeros(size, np.float32)
    for y in range(size[0]):
        for x in range(size[1]):
            v = (y + 0.5 - top) / (bottom - top) * cells - 0.5
            u = (x + 0.5 - left) / (right - left) * cells - 0.5
            if not (-1 < u < cells and -1 < v < cells):
                continue
            i, j = int(np.floor(v)), int(np.floor(u))
            a, b = np.float32(v - i), np.float32(u - j)
            rows = (1 - a) * around[i + 2] + a * around[i + 3]
            found[y, x] = (1 - b) * rows[j + 2] + b * rows[j + 3]
    return found


BOXES = np.array(
    [
        [3.2, 4.7, 20.1, 31.9],
        [-5.0, -8.5, 12.0, 14.0],  # over two sides of the image
        [0.0, 0.0, 37.0, 41.0],  # all of it: runs continue from column to column
        [10.0, 5.0, 38.0, 33.0],  # pixels are cells
        [20.3, 7.1, 20.9, 7.6],  # smaller than a pixel
        [15.0, 5.0, 15.0, 9.0],  # without area
        [36.2, 40.1, 60.0, 70.0],  # a corner
    ],
    np.float32,
)
SIZE = (41, 37)


@pytest.fixture(scope="module")
def probabilities() -> np.ndarray:
    noise = torch.rand(len(BOXES), 1, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, size=(28, 28), mode="bicubic").clamp(0, 1)[:, 0].numpy()
    smooth[2] = 1.0
    return smooth


@pytest.mark.parametrize("most", [1, 100, 1 << 20])
def test_masks_are_those_of_the_definition(
    most: int, probabilities: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_PIXELS", most)
    codes = pasted(probabilities, BOXES, SIZE)
    for mask, box, code in zip(probabilities, BOXES, codes, strict=True):
        degenerate = box[2] == box[0]
        expected = np.zeros(SIZE, bool) if degenerate else plain(mask, box, SIZE) >= 0.5
        assert code["counts"] == judge.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"].decode()
        assert code["size"] == list(SIZE)
    areas = judge.area(codes)
    assert areas[2] == SIZE[0] * SIZE[1]
    assert areas[5] == 0
    assert 0 < areas[0] < 17 * 27


def test_masks_are_those_of_grid_sample(probabilities: np.ndarray) -> None:
    for mask, box in zip(probabilities[:4], BOXES[:4], strict=True):
        left, top, right, bottom = box.tolist()
        x = (torch.arange(SIZE[1]) + 0.5 - left) / (right - left) * 2 - 1
        y = (torch.arange(SIZE[0]) + 0.5 - top) / (bottom - top) * 2 - 1
        grid = torch.stack([x.expand(SIZE), y[:, None].expand(SIZE)], dim=-1)[None]
        expected = F.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)[0, 0].numpy()
        (code,) = pasted(mask[None], box[None], SIZE)
        different = judge.decode(code) != (expected >= 0.5)
        assert (abs(expected[different] - 0.5) < 1e-5).all()


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_and_single_pixels_are_those_of_the_judge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (37, 300)
    bitmap = np.asfortranarray((rng.random(size) < (0.5, 0.02, 0.9)[seed]).astype(np.uint8))
    bitmap[:, 50:290] = seed == 2  # long runs have several digits, and negative differences
    code = judge.encode(bitmap)
    lengths = run_lengths(code["counts"])
    assert np.array_equal(np.repeat(np.arange(len(lengths)) % 2, lengths), bitmap.ravel(order="F"))
    rows, columns = rng.integers(0, size[0], 9), rng.integers(0, size[1], 20)
    assert np.array_equal(sampled(code, rows, columns), bitmap[rows][:, columns] > 0)
    assert np.array_equal(sampled(code, np.arange(size[0]), np.arange(size[1])), bitmap > 0)


def test_a_mask_in_a_larger_box_covers_the_same_pixels() -> None:
    ones = np.ones((28, 28), np.float32)
    box, target = np.array([10.0, 10.0, 38.0, 38.0]), np.array([10.0, 10.0, 66.0, 66.0])
    moved = resampled(ones, box, target)
    assert moved[:13, :13].min() == 1.0
    assert moved[14:].max() < 0.3
    (code,) = pasted(moved[None], target[None], (80, 80))
    assert judge.area(code) == pytest.approx(28 * 28, rel=0.05)
