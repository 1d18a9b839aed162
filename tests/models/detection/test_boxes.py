"""Arithmetic of boxes, anchors, and the levels that boxes are pooled from."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from swinv2_train.models.detection.anchors import anchors_of, base_anchors, usable
from swinv2_train.models.detection.boxes import areas, clip, decode, encode, intersections, overlaps
from swinv2_train.models.detection.pooler import BoxFeatures, level_of
from swinv2_train.models.detection.roi_heads import DEVIATIONS
from tests.models.detection.made import random_boxes

GENERATOR = torch.Generator().manual_seed(3)


@pytest.mark.parametrize("deviations", [*DEVIATIONS, (1.0, 1.0, 1.0, 1.0)])
def test_offsets_are_those_of_r_cnn_and_lead_back(deviations: tuple[float, ...]) -> None:
    boxes, targets = random_boxes(50, GENERATOR).double(), random_boxes(50, GENERATOR).double()
    offsets = encode(boxes, targets, deviations)
    theirs = BoxCoder(tuple(1 / each for each in deviations)).encode_single(targets, boxes)
    torch.testing.assert_close(offsets, theirs)
    torch.testing.assert_close(decode(boxes, offsets, deviations), targets, rtol=1e-12, atol=1e-9)


def test_a_side_changes_at_most_by_the_limit() -> None:
    box = torch.tensor([[10.0, 10.0, 26.0, 26.0]])
    wide = decode(box, torch.tensor([[0.0, 0.0, 50.0, -50.0]]), (1.0,) * 4)[0]
    assert (wide[2] - wide[0]).item() == pytest.approx(1000)
    assert (wide[3] - wide[1]).item() == pytest.approx(16 * 16 / 1000, rel=1e-4)


def test_overlaps_are_those_of_torchvision() -> None:
    ones, others = random_boxes(20, GENERATOR), random_boxes(30, GENERATOR)
    torch.testing.assert_close(overlaps(ones, others), box_iou(ones, others))
    torch.testing.assert_close(intersections(ones, ones).diagonal(), areas(ones))
    empty = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    assert not overlaps(empty, torch.cat([empty, ones])).any()
    assert torch.equal(clip(torch.tensor([[-5.0, 3.0, 90.0, 70.0]]), (64, 80)), torch.tensor([[0.0, 3.0, 80.0, 64.0]]))


def test_anchors_are_around_the_corners_of_the_cells() -> None:
    """Against loops over rows, columns, and ratios; the constants are those of mmdetection."""
    stride, ratios, found = 8, (0.5, 1.0, 2.0), anchors_of((2, 3), 8, base_anchors(64, (0.5, 1.0, 2.0)))
    expected = []
    for row in range(2):
        for column in range(3):
            for ratio in ratios:
                height = math.sqrt(64 * 64 * ratio)
                width = height / ratio
                x, y = column * stride, row * stride
                expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal(base_anchors(32, [1.0]), torch.tensor([[-16.0, -16.0, 16.0, 16.0]]))


def test_anchors_beyond_an_image_are_used_on_request() -> None:
    anchors = torch.tensor([
        [0, 0, 10, 10], [-1, 0, 9, 10], [10, 0, 20, 10], [9, 0, 19, 10], [14, 0, 26, 10], [0, 24, 10, 36.0],
    ])  # fmt: skip
    size = torch.tensor([30, 20])
    assert usable(anchors, size, outside=False).tolist() == [True, False, False, True, False, False]
    assert usable(anchors, size, outside=True).tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (56, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (5000, 3)]
)
def test_the_level_follows_the_side_of_a_box(side: int, level: int) -> None:
    boxes = torch.tensor([[3.0, 3.0, 3.0 + side, 3.0 + side], [0, 0, side * 4, side / 4]])
    assert level_of(boxes, 4, 4).tolist() == [level, level]
    assert level_of(boxes / 2, 4, 2).tolist() == [level, level]


def test_boxes_are_pooled_from_their_level_and_image() -> None:
    """Maps whose values are those of a linear function of the place are pooled to its values at the bins' centers."""
    levels = []
    for number in range(4):
        stride = 4 * 2**number
        y, x = torch.meshgrid(*((torch.arange(512 // stride) + 0.5) * stride for _ in range(2)), indexing="ij")
        one = torch.stack([x, y, torch.full_like(x, number)])
        levels.append(torch.stack([one, -one]).double())
    features = BoxFeatures(levels, 4)
    boxes = [torch.tensor([[40.0, 60.0, 68.0, 95.0], [50, 50, 300, 300]]), torch.tensor([[100.0, 30.0, 220.0, 180.0]])]
    for pooled, side in ((features.of_boxes(boxes), 7), (features.of_masks(boxes), 14)):
        assert pooled.shape == (3, 3, side, side)
        for found, box, level, sign in zip(pooled, torch.cat(boxes).tolist(), (0, 2, 1), (1, 1, -1), strict=True):
            place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
            x, y = (box[axis] + place * (box[axis + 2] - box[axis]) for axis in (0, 1))
            expected = torch.stack([x.expand(side, -1), y[:, None].expand(-1, side), torch.full_like(found[0], level)])
            torch.testing.assert_close(found, sign * expected)
    assert features.of_boxes([boxes[0][:0], boxes[1][:0]]).shape == (1, 3, 7, 7), "a head always runs"


def test_features_of_the_semantic_branch_are_added() -> None:
    levels = [torch.zeros(1, 2, 64 // 2**number, 64 // 2**number) for number in range(4)]
    semantic = torch.rand(1, 2, 32, 32, generator=GENERATOR)
    boxes = [torch.tensor([[16.0, 24.0, 128.0, 136.0]])]
    features = BoxFeatures(levels, 4, semantic)
    # 14 cells of 8 pixels: the bins are the cells.
    torch.testing.assert_close(features.of_masks(boxes)[0], semantic[0, :, 3:17, 2:16])
    pooled = torch.nn.functional.avg_pool2d(semantic[0, :, 3:17, 2:16], 2)
    torch.testing.assert_close(features.of_boxes(boxes)[0], pooled)
