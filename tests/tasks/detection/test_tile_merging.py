"""Planted objects over the borders of tiles: every object is found once, whole, whatever tile shows which part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swinv2_train.models.detection.boxes import overlaps
from swinv2_train.models.detection.structures import Detections
from swinv2_train.models.detection.suppression import suppress
from swinv2_train.tasks.detection.masks import pasted, sampled
from swinv2_train.tasks.detection.merging import in_original, joined
from swinv2_train.tasks.detection.tile_merging import merge_tiles

SIZE = (480, 700)
TILE, STEP = 200, 140


def tiles(tile: int = TILE, step: int = STEP) -> torch.Tensor:
    places = [sorted({min(start, side - tile) for start in range(0, side - tile + step, step)}) for side in SIZE]
    corners = [(left, top) for top in places[0] for left in places[1]]
    return torch.tensor([[left, top, left + tile, top + tile] for left, top in corners], dtype=torch.float32)


def seen(objects: torch.Tensor, classes: torch.Tensor, where: torch.Tensor, seed: int = 0) -> list[Detections]:
    """A detector that finds the visible part of every object, a pixel or so off, if at least 3 pixels are visible."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for tile in where:
        left, top = tile[:2].tolist()
        part = torch.stack(
            [
                torch.maximum(objects[:, 0], tile[0]) - left,
                torch.maximum(objects[:, 1], tile[1]) - top,
                torch.minimum(objects[:, 2], tile[2]) - left,
                torch.minimum(objects[:, 3], tile[3]) - top,
            ],
            dim=1,
        )
        visible = ((part[:, 2:] - part[:, :2]) >= 3).all(dim=1)
        boxes = part[visible] + torch.rand(int(visible.sum()), 4, generator=rng) - 0.5
        boxes = torch.minimum(boxes.clamp(min=0), (tile[2:] - tile[:2]).repeat(2))
        scores = 0.5 + 0.5 * torch.rand(len(boxes), generator=rng)
        order = scores.argsort(descending=True)
        masks = torch.ones(len(boxes), 28, 28)
        found.append(Detections(boxes[order], scores[order], classes[visible][order], masks))
    return found


def planted(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Objects of all sizes, up to twice a tile; those of a class do not touch."""
    rng = np.random.default_rng(seed)
    boxes: list[np.ndarray] = []
    classes: list[int] = []
    while len(boxes) < count:
        sides = rng.choice([15.0, 50.0, 120.0, 260.0, 400.0], 2)
        sides = np.minimum(sides * rng.uniform(0.7, 1.0, 2), [SIZE[1] - 1, SIZE[0] - 1])
        corner = rng.random(2) * (np.array(SIZE[::-1]) - sides)
        box, kind = np.concatenate([corner, corner + sides]), int(rng.integers(0, 4))
        others = [one for one, other in zip(boxes, classes, strict=True) if other == kind]
        if all((box[2:] + 4 < one[:2]).any() or (one[2:] + 4 < box[:2]).any() for one in others):
            boxes.append(box)
            classes.append(kind)
    return torch.tensor(np.array(boxes), dtype=torch.float32), torch.tensor(classes)


@pytest.mark.parametrize("seed", range(4))
def test_every_object_is_found_once_and_whole(seed: int) -> None:
    objects, classes = planted(25, seed)
    where = tiles()
    parts = seen(objects, classes, where, seed)
    placed = [
        in_original(part, corner=(float(tile[1]), float(tile[0]))) for part, tile in zip(parts, where, strict=True)
    ]
    plain = joined(placed)
    assert len(suppress(plain.boxes, plain.classes, 0.5)) > 1.5 * len(objects)  # the parts of objects remain
    found = merge_tiles(where, parts, SIZE, 0.5)
    assert len(found.scores) == len(objects)
    overlap = overlaps(objects, found.boxes) * (classes[:, None] == found.classes[None])
    assert float(overlap.amax(dim=1).min()) > 0.85
    assert sorted(overlap.argmax(dim=1).tolist()) == list(range(len(objects)))
    assert (found.scores.diff() <= 0).all()
    again = merge_tiles(where.flip(0), parts[::-1], SIZE, 0.5)
    torch.testing.assert_close(again.boxes, found.boxes)


def test_rough_boxes_leave_few_parts() -> None:
    """Sides off by 3% of the object: most cut boxes do not end exactly at the border of their tile."""
    objects, classes = planted(25, 0)
    where, rng = tiles(), torch.Generator().manual_seed(0)
    parts = seen(objects, classes, where)
    for part in parts:
        sides = (part.boxes[:, 2:] - part.boxes[:, :2]).repeat(1, 2)
        part.boxes = (part.boxes + 0.03 * sides * torch.randn(sides.shape, generator=rng)).clamp(0, TILE)
    found = merge_tiles(where, parts, SIZE, 0.5)
    assert len(objects) <= len(found.scores) <= 1.1 * len(objects)
    overlap = overlaps(objects, found.boxes) * (classes[:, None] == found.classes[None])
    assert float(overlap.amax(dim=1).min()) > 0.5


def test_a_joined_object_has_a_joined_mask() -> None:
    objects = torch.tensor([[30.0, 100.0, 650.0, 160.0]])  # longer than three tiles
    where = tiles()
    found = merge_tiles(where, seen(objects, torch.tensor([2]), where), SIZE, 0.5)
    assert found.classes.tolist() == [2]
    assert found.masks is not None
    (code,) = pasted(found.masks.numpy(), found.boxes.numpy(), SIZE)
    mask = sampled(code, np.arange(SIZE[0]), np.arange(SIZE[1]))
    expected = np.zeros(SIZE, bool)
    expected[100:160, 30:650] = True
    assert (mask & expected).sum() / (mask | expected).sum() > 0.9


def test_neighbors_and_other_classes_stay() -> None:
    """Two objects side by side at a border, one of them in both tiles, and one of another class at the same place."""
    where = torch.tensor([[0.0, 0.0, 200.0, 200.0], [140.0, 0.0, 340.0, 200.0]])
    objects = torch.tensor([[120.0, 50.0, 165.0, 90.0], [175.0, 50.0, 230.0, 90.0], [150.0, 40.0, 190.0, 100.0]])
    classes = torch.tensor([0, 0, 1])
    found = merge_tiles(where, seen(objects, classes, where), (200, 340), 0.5)
    assert len(found.scores) == 3
    assert float(overlaps(objects, found.boxes).amax(dim=1).min()) > 0.85


def test_detections_of_one_tile_are_not_compared() -> None:
    """As after soft-NMS, which keeps boxes that overlap."""
    where = torch.tensor([[0.0, 0.0, 200.0, 200.0]])
    twins = torch.tensor([[50.0, 50.0, 90.0, 90.0], [51.0, 50.0, 91.0, 90.0]])
    found = merge_tiles(where, seen(twins, torch.tensor([0, 0]), where), (200, 200), 0.5)
    assert len(found.scores) == 2


def test_nothing_and_one_tile_of_the_whole_image() -> None:
    where = tiles()
    objects, classes = planted(5, 0)
    empty = merge_tiles(where, seen(objects[:0], classes[:0], where), SIZE, 0.5)
    assert empty.boxes.shape == (0, 4)
    whole = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
    assert len(merge_tiles(whole, seen(objects, classes, whole), SIZE, 0.5).scores) == 5
