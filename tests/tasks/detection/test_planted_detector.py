"""An entire detector with weights set by hand: it reads rings of pure colors, and its APs of boxes and masks are 1.

Only the backbone is replaced: by the share of each color in every cell, and by three proposals for each object that are
off by a tenth of its sides. Pyramid, proposals, cascade, suppression, merging of views, masks, and evaluator are the
real ones. Every part has something to do: without it, an AP is below 1, or there are detections too many.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from swinv2_train.data.batch import Batch, collate
from swinv2_train.data.object_masks import encoded
from swinv2_train.models.detection import Detector
from swinv2_train.models.detection.anchors import base_anchors
from swinv2_train.models.detection.boxes import encode
from swinv2_train.models.detection.roi_heads import DEVIATIONS
from swinv2_train.tasks.detection.task import Detection
from tests.models.detection.made import KINDS
from tests.models.detection.test_planted import copy_channels
from tests.tasks.detection.test_task import make
from tests.tasks.detection.test_transform import content, sample

SIZE = (256, 384)
SCENES: list[list[tuple[int, int, int, int, int]]] = [
    [
        (24, 24, 136, 136, 0), (160, 16, 272, 72, 2), (296, 64, 352, 176, 2), (160, 112, 272, 224, 1),
        (64, 200, 120, 256, 0),
    ],
    [
        (24, 24, 192, 192, 1), (216, 88, 328, 200, 2), (296, 16, 352, 72, 0), (296, 16, 352, 72, 1),
        (24, 200, 80, 256, 2),
    ],
    [],
]  # fmt: skip
"""Left, top, right, bottom, and class of the objects of each image. Sides are multiples of 56 pixels and places of 8:
views at half and twice the size have whole pixels too. Proposals stay inside of the image and off other objects. Two
objects of different classes have the same box."""
CLASSES, CHANNELS, CELLS = 3, 16, 7
COLORS, FILLED, OBJECT, MOVES = slice(0, 3), 3, 4, slice(5, 13)
"""Channels: the share of each class in a cell and of all boxes, an object's anchor, and offsets from it as positive and
negative parts."""
BEST, COPY, OTHER = (0.1, -0.1), (0.07, -0.1), (-0.1, -0.1)
"""Distances of the three proposals from the object, of the sides. The copy overlaps the best one by more than 0.7, the
other one by less: so it remains, and its detection is suppressed."""
SMALL = 0.17
"""Objects below this fraction of the width have proposals of a lower level, and with lower scores."""
PROPOSALS = 8
"""As many as the best proposals of the large objects of the first image and their copies: a small object remains only
because the copies are suppressed."""
HIDDEN = 14
"""Channel in which mask heads of HTC get what only the first one sees."""
SURE = 30.0
"""Logit of a sure answer."""


class Sight(nn.Module):
    """Maps whose pyramid, from the coarsest to the finest level added up, are shares of colors and the proposals."""

    def __init__(self, dims: list[int], anchor_scale: float) -> None:
        super().__init__()
        self.dims, self.anchor_scale = dims, anchor_scale

    def forward(self, images: Tensor, noise: Tensor | None = None) -> list[Tensor]:
        pixels = F.pad((images > 0).float(), (0, -images.shape[3] % 32, 0, -images.shape[2] % 32))
        boxes = [self._boxes(each) for each in pixels]
        levels = []
        for number, dim in enumerate(self.dims):
            shown = torch.zeros(len(pixels), dim, *pixels.shape[2:])
            for image, found in enumerate(boxes):
                for left, top, right, bottom in found:
                    if number in _pooled_from(right - left, bottom - top):
                        place = image, slice(0, FILLED), slice(top, bottom), slice(left, right)
                        shown[place] = pixels[place]
                        shown[image, FILLED, top:bottom, left:right] = 1
            level = F.avg_pool2d(shown, 4 * 2**number)
            for image, found in enumerate(boxes):
                for box in found:
                    self._propose(level[image], torch.tensor([box], dtype=torch.float32), number, images.shape[3])
            levels.append(level)
        for number in range(3):
            above = levels[number + 1][:, :CHANNELS].repeat_interleave(2, 2).repeat_interleave(2, 3)
            levels[number][:, :CHANNELS] -= above[:, :, : levels[number].shape[2], : levels[number].shape[3]]
        return [level.permute(0, 2, 3, 1) for level in levels]

    @staticmethod
    def _boxes(pixels: Tensor) -> list[tuple[int, int, int, int]]:
        """The extents of the connected parts of every color."""
        found = []
        for channel in pixels.numpy():
            places = ndimage.find_objects(ndimage.label(channel)[0])
            found += [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in places]
        return found

    def _propose(self, level: Tensor, box: Tensor, number: int, width: int) -> None:
        sides = (box[:, 2:] - box[:, :2])[0]
        stride, small = 4 * 2**number, bool(sides.prod().sqrt() < SMALL * width)
        if number != (1 if small else 2):
            return
        middle, row = ((box[0, :2] + box[0, 2:]) / 2 / stride).long().tolist()
        scores = (0.9, 0.85, 0.8) if small else (1.0, 0.95, 0.8)
        for shift, score, column in zip((BEST, COPY, OTHER), scores, (middle, middle + 1, middle - 1), strict=True):
            wanted = box + (torch.tensor(shift) * sides).repeat(2)
            anchor = base_anchors(self.anchor_scale * stride, [1.0]) + torch.tensor([column, row] * 2) * stride
            offsets = encode(anchor, wanted, (1.0,) * 4)[0]
            level[OBJECT, row, column] = score
            level[MOVES, row, column] = torch.cat([offsets.clamp(min=0), (-offsets).clamp(min=0)])


def _pooled_from(width: int, height: int) -> range:
    """The levels that show an object: the one that its box is pooled from, and at the border of two levels both."""
    place = math.log2(math.sqrt(width * height) / 56)
    lowest, highest = (min(2, max(0, math.floor(place + step))) for step in (-0.2, 0.2))
    return range(lowest, highest + 1)


@torch.no_grad()
def planted(task: Detection) -> Detector:
    model = task.build_model().eval()
    assert isinstance(model, Detector)
    dims = model.backbone.dims
    model.backbone = Sight(dims, task.task.anchor_scale)  # type: ignore[assignment]
    model.norms = nn.ModuleList(nn.Identity() for _ in dims[:-1])
    copy_channels(model)
    model.pyramid.laterals[3].weight.zero_()  # global attention has the last map, which shows nothing
    if model.semantic is not None:
        model.semantic.embedding.weight.zero_()
    model.rpn.objectness.weight.zero_()
    model.rpn.objectness.weight[0, OBJECT] = 2 * SURE
    model.rpn.objectness.bias.fill_(-SURE)
    model.rpn.offsets.weight.zero_()
    for number in range(4):
        model.rpn.offsets.weight[number, MOVES.start + number] = 1
        model.rpn.offsets.weight[number, MOVES.start + number + 4] = -1
    # A box that is off along both axes sees less of the object: a tenth is left to the second stage.
    gain = 0.5 if task.task.stages > 1 else 0.5 / (1 - max(BEST))
    for stage, head in enumerate(model.heads.box_heads):
        _plant_box_head(head, gain, DEVIATIONS[stage])
    for stage, head in enumerate(model.heads.mask_heads or []):
        head.classes.weight.mul_(2 * SURE)
        head.classes.bias.fill_(-SURE)
        if model.heads.mask_heads.flows:
            _plant_flow(head, stage)
        elif stage and stage == task.task.stages - 1:  # the last head alone would fill the holes
            head.classes.bias.fill_(0.4)
    return model


def _plant_flow(head: Any, stage: int) -> None:
    """Hide the last class from all heads but the first one, from which it flows in another channel."""
    if stage:
        head.former.weight.zero_()
        head.former.weight[HIDDEN, CLASSES - 1 if stage == 1 else HIDDEN] = 1
        head.convs[0].weight[CLASSES - 1].zero_()
        head.classes.weight[CLASSES - 1].zero_()
        head.classes.weight[CLASSES - 1, HIDDEN] = 2 * SURE


def _plant_box_head(head: Any, gain: float, deviations: tuple[float, ...]) -> None:
    """Hidden numbers: shares of ring and hole for each class, and of the left, upper, right, and lower half."""
    ring, hole = torch.ones(CELLS, CELLS), torch.zeros(CELLS, CELLS)
    ring[2:5, 1:6], hole[2:5, 3] = 0, 1  # mirrored or not
    middle = torch.arange(CELLS) - CELLS // 2
    patterns = [(channel, part) for channel in range(CLASSES) for part in (ring, hole)]
    for half in (middle < 0, middle > 0):
        weights = (half + 0.5 * (middle == 0)).expand(CELLS, CELLS)
        patterns += [(FILLED, weights), (FILLED, weights.T)]
    first = head.linears[0]
    first.weight.zero_()
    for row, (channel, part) in enumerate(patterns):
        first.weight[row].view(CHANNELS, CELLS, CELLS)[channel] = part / part.sum()
    head.classes.weight.zero_()
    for number in range(CLASSES):
        head.classes.weight[number, 2 * number], head.classes.weight[number, 2 * number + 1] = SURE, -SURE
    head.background.weight.zero_()
    head.background.bias.fill_(SURE / 8)
    weight = torch.zeros(4, first.weight.shape[0])
    for axis in range(2):  # the box moves to the half that shows more
        weight[axis, 2 * CLASSES + axis] = -gain / deviations[axis]
        weight[axis, 2 * CLASSES + 2 + axis] = gain / deviations[axis]
    if head.boxes is not None:
        head.boxes.weight.copy_(weight)
    else:
        head.class_boxes.weight.copy_(weight.expand(CLASSES, 4, -1))


def settings(kind: str, **task: Any) -> dict[str, Any]:
    return {
        **KINDS[kind], "channels": CHANNELS, "mask_channels": CHANNELS, "box_hidden": CHANNELS, "head_norm": "none",
        "anchor_ratios": [1.0], "test_proposals": PROPOSALS, "max_detections": 100, "score_threshold": 0.05,
        "test_short": min(SIZE), "test_long": max(SIZE), **task,
    }  # fmt: skip


@functools.cache
def pictures() -> list[tuple[np.ndarray, dict[str, Any]]]:
    """The image and the objects of each scene."""
    made = []
    for number, objects in enumerate(SCENES):
        image, described = np.zeros((*SIZE, 3), np.uint8), content([each[:4] for each in objects], SIZE)
        for entry, (left, top, right, bottom, label) in zip(described["objects"], objects, strict=True):
            mask = np.zeros(SIZE, np.uint8)
            mask[top:bottom, left:right] = 1
            tall, wide = (bottom - top) // CELLS, (right - left) // CELLS
            start = left + 3 * wide // 2  # left of the middle
            mask[top + 2 * tall : bottom - 2 * tall, start : start + 3 * wide] = 0
            image[mask == 1, label] = 255
            entry |= {"category": label, "segmentation": encoded(mask), "area": int(mask.sum())}
        made.append((image, described | {"id": number + 1}))
    return made


def held_out(task: Detection) -> Batch:
    entries = []
    for image, described in pictures():
        entries.append(task.eval_transform(sample(image, described), np.random.default_rng(0)))
    batch = collate(entries, images=task.eval_transform.images, ragged=task.eval_transform.ragged)
    return batch | {"position": torch.arange(len(entries)), "valid": torch.ones(len(entries), dtype=torch.bool)}


VIEWS: dict[str, dict[str, Any]] = {
    "one": {},
    "averaged": {"test_flip": True, "test_scales": [0.5, 1.0, 2.0]},
    "softened": {"test_flip": True, "test_scales": [0.5, 1.0], "soft_nms": True},
}


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_that_sees_everything_has_an_ap_of_one(kind: str, views: str) -> None:
    """Exactly: boxes are off by rounding and, averaged over views, by a tenth of a pixel, masks by single pixels of
    thousands. So every object has an overlap above 0.95, and false alarms have lower scores."""
    task = make(**settings(kind), **VIEWS[views])
    model = planted(task)
    batch = held_out(task)
    found = task.measure(model, batch)
    metrics = task.metrics(found)
    assert {name: metrics[name] for name in ("box_ap", "mask_ap", "box_ar_100", "mask_ar_100")} == {
        "box_ap": 1, "mask_ap": 1, "box_ar_100": 1, "mask_ar_100": 1,
    }  # fmt: skip
    for record in found.records.values():
        count = len(record.truth)
        assert len(record.found) == count or views == "softened"
        best = record.found.boxes[:count] if views != "softened" else record.found.boxes
        errors = np.abs(best[:, None] - record.truth.boxes).max(axis=2)
        assert (errors.min(axis=0) < 0.2).all() if count else len(best) == 0


def test_its_boxes_come_from_the_heads_and_its_masks_too() -> None:
    """With box heads that move nothing, and with mask heads that fill the boxes, AP is far from 1."""
    task = make(**settings("cascade"))
    model, batch = planted(task), held_out(task)
    with torch.no_grad():
        for head in model.heads.mask_heads or []:
            head.classes.bias.fill_(SURE)
    filled = task.metrics(task.measure(model, batch))
    assert filled["box_ap"] == 1
    assert filled["mask_ap"] < 0.8
    with torch.no_grad():
        for head in model.heads.box_heads:
            head.class_boxes.weight.zero_()
    unmoved = task.metrics(task.measure(model, batch))
    assert unmoved["box_ap50"] == 1
    assert unmoved["box_ap"] < 0.5
