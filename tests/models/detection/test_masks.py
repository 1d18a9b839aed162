"""Bit-packed masks: targets equal to those of the entire bitmap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from swinv2_train.models.detection.mask_heads import mask_targets
from tests.models.detection.made import CANVAS, packed

WINDOWS = [(0, 0, 64, 80), (10, 20, 41, 63), (0, 5, 9, 80), (60, 70, 64, 80), (30, 30, 31, 31), (5, 5, 5, 5)]


def blobs(window: tuple[int, ...], seed: int) -> np.ndarray:
    """A mask of the canvas inside of a window, with smooth sides and single pixels."""
    top, left, bottom, right = window
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, CANVAS, mode="bicubic")[0, 0] + 0.3 * torch.rand(CANVAS, generator=generator)
    mask = np.zeros(CANVAS, np.uint8)
    mask[top:bottom, left:right] = (smooth > 0.6)[top:bottom, left:right]
    return mask


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    return [blobs(window, seed) for seed, window in enumerate(WINDOWS)]


def test_bitmaps_come_back_from_their_bits(masks: list[np.ndarray]) -> None:
    bitmaps = packed(masks, WINDOWS)
    assert len(bitmaps) == len(WINDOWS)
    assert bitmaps.present.tolist() == [True] * 5 + [False]
    for index, (top, left, bottom, right) in enumerate(WINDOWS):
        assert np.array_equal(bitmaps.crop(index).numpy(), masks[index][top:bottom, left:right])
    assert list(packed([], []).unpacked([])) == []
    assert [len(mask) for mask in bitmaps.unpacked([3, 0])] == [4, 64]


def test_targets_are_those_of_the_entire_bitmap(masks: list[np.ndarray]) -> None:
    """Boxes inside of the window, around it, next to it, and beyond the canvas."""
    generator = torch.Generator().manual_seed(8)
    corners = torch.rand(12, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 3 + 50 * torch.rand(12, 2, generator=generator)], dim=1)
    boxes = torch.cat([boxes, torch.tensor([[-9.0, -20, 100, 90], [0, 0, 80, 64], [20, 10, 63, 41]])])
    every, objects = boxes.repeat(5, 1), torch.arange(5).repeat_interleave(len(boxes))
    order = torch.randperm(len(every), generator=generator)
    found = mask_targets(packed(masks, WINDOWS), objects[order], every[order], CANVAS)
    whole = torch.from_numpy(np.stack(masks[:5])).float()[:, None]
    values = roi_align(whole, list(boxes.repeat(5, 1).split(len(boxes))), 28, 1.0, 0, aligned=True)[:, 0][order]
    unsure = (values - 0.5).abs() < 1e-4  # rounding
    assert torch.equal(found[~unsure], (values >= 0.5).float()[~unsure])
    assert unsure.float().mean() < 0.01
    assert 0.1 < found.mean() < 0.9
    assert mask_targets(packed(masks, WINDOWS), objects[:0], every[:0], CANVAS).shape == (0, 28, 28)
