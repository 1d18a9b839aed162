"""One list of detections from the tiles of a large image: an object on the border of tiles is found once.

Tiles overlap. A detection is cut if it ends at a border of its tile that is not a border of the image.

1. A cut detection that is inside of an uncut one of a neighboring tile is a part of that object, and removed.
2. Cut detections of neighboring tiles that agree in the overlap of the tiles are parts of one object, which no tile
   shows as a whole. They are joined to one box, with one mask and the highest score.
3. Uncut detections of neighboring tiles that overlap are the same object; the highest score remains.

Detections of the same tile are never compared: the detector has done that. Classes are independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swinv2_train.models.detection.boxes import areas, intersections, overlaps
from swinv2_train.models.detection.structures import Detections
from swinv2_train.tasks.detection.merging import chosen, concatenated, in_original, joined, on_host, onto

INSIDE = 0.7
"""Fraction of a cut detection that must be in an uncut one."""
_NEAR_PIXELS, _NEAR_SHARE = 2.0, 0.15
"""Distance from a border at which a detection ends there: in pixels, or as a fraction of its side, the larger one."""
_TOGETHER = 1000


def merge_tiles(tiles: Tensor, found: Sequence[Detections], size: tuple[int, int], threshold: float) -> Detections:
    """Return the detections of all tiles in pixels of the image, from the highest score to the lowest, on the host.

    Args:
        tiles: (T, 4) left, top, right, bottom of each tile in the image.
        found: detections of each tile, in its pixels.
        size: height and width of the image.
        threshold: overlap (IoU) above which two detections of a class are the same object.
    """
    parts = [
        on_host(in_original(each, corner=(float(tile[1]), float(tile[0]))))
        for tile, each in zip(tiles, found, strict=True)
    ]
    cuts = [_cut(part.boxes, tile, size) for part, tile in zip(parts, tiles.tolist(), strict=True)]
    every, cut = concatenated(parts), torch.cat(cuts)
    ends = torch.tensor([len(part.scores) for part in parts]).cumsum(dim=0).tolist()
    places = [torch.arange(end - len(part.scores), end) for part, end in zip(parts, ends, strict=True)]
    removed = torch.zeros_like(cut)
    none = torch.zeros(0, 2, dtype=torch.int64)
    same, meeting = [none], [none]
    for one, other in _neighbors(tiles):
        pair = _Pair(every, cut, places[one], places[other])
        removed[pair.inside()] = True
        same.append(pair.same(threshold))
        meeting.append(pair.meeting(threshold, _common(tiles[one], tiles[other])))
    removed[_lower(torch.cat(same), every.scores)] = True
    pairs = torch.cat(meeting)
    groups = _groups(pairs[~removed[pairs].any(dim=1)])
    grouped = torch.zeros_like(cut)
    grouped[[member for group in groups for member in group]] = True
    single, lone = chosen(every, ~removed & ~grouped), cut[~removed & ~grouped]
    unions = [_union(chosen(every, torch.tensor(group))) for group in groups]
    if unions:  # a third tile may show another part of a joined object
        single = chosen(single, ~(lone & _covered(single, concatenated(unions))))
    return joined([single, *unions])


class _Pair:
    """Detections of two neighboring tiles, those of the same class compared with each other.

    Args:
        every: all detections, in pixels of the image.
        cut: (N,) bool.
        ones, others: numbers of the detections of either tile.
    """

    def __init__(self, every: Detections, cut: Tensor, ones: Tensor, others: Tensor) -> None:
        self.ones, self.others = ones, others
        self.boxes = every.boxes[ones], every.boxes[others]
        self.cut = cut[ones][:, None], cut[others][None]
        self.classes = every.classes[ones][:, None] == every.classes[others][None]

    def inside(self) -> Tensor:
        """Return the numbers of the cut detections that are inside of an uncut one."""
        common = intersections(*self.boxes)
        first = (common > INSIDE * areas(self.boxes[0])[:, None]) & self.classes & self.cut[0] & ~self.cut[1]
        second = (common > INSIDE * areas(self.boxes[1])[None]) & self.classes & self.cut[1] & ~self.cut[0]
        return torch.cat([self.ones[first.any(dim=1)], self.others[second.any(dim=0)]])

    def same(self, threshold: float) -> Tensor:
        """Return the pairs of uncut detections of the same object, (P, 2)."""
        return self._pairs((overlaps(*self.boxes) > threshold) & ~self.cut[0] & ~self.cut[1])

    def meeting(self, threshold: float, shared: Tensor) -> Tensor:
        """Return the pairs of cut detections that agree in the region (4,) that both tiles show, (P, 2)."""
        ones, others = (_common(boxes, shared) for boxes in self.boxes)
        return self._pairs((overlaps(ones, others) > threshold) & self.cut[0] & self.cut[1])

    def _pairs(self, matrix: Tensor) -> Tensor:
        first, second = (matrix & self.classes).nonzero(as_tuple=True)
        return torch.stack([self.ones[first], self.others[second]], dim=1)


def _cut(boxes: Tensor, tile: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return whether boxes (N, 4) end at a border of their tile that is inside of the image, (N,) bool."""
    near = (_NEAR_SHARE * (boxes[:, 2:] - boxes[:, :2])).clamp(min=_NEAR_PIXELS)
    corner, end = boxes.new_tensor(tile[:2]), boxes.new_tensor(tile[2:])
    inner_start, inner_end = corner > 0, end < boxes.new_tensor([size[1], size[0]])
    return (((boxes[:, :2] - corner <= near) & inner_start) | ((end - boxes[:, 2:] <= near) & inner_end)).any(dim=1)


def _neighbors(tiles: Tensor) -> list[tuple[int, int]]:
    """Return the pairs of tiles (T, 4) that have pixels in common."""
    shared = intersections(tiles.double(), tiles.double()) > 0
    return [(one, other) for one, other in shared.nonzero().tolist() if one < other]


def _common(ones: Tensor, others: Tensor) -> Tensor:
    """Return the region that boxes have in common, (..., 4); of boxes that do not meet, one without area."""
    low, high = torch.maximum(ones[..., :2], others[..., :2]), torch.minimum(ones[..., 2:], others[..., 2:])
    return torch.cat([low, torch.maximum(low, high)], dim=-1)


def _lower(pairs: Tensor, scores: Tensor) -> list[int]:
    """Return the detections to remove, so that of no pair (P, 2) both remain: from the highest score to the lowest, a
    detection remains if none that remains is its partner."""
    partners: dict[int, list[int]] = {}
    for one, other in pairs.tolist():
        partners.setdefault(one, []).append(other)
        partners.setdefault(other, []).append(one)
    removed: set[int] = set()
    for number in sorted(partners, key=lambda number: (-float(scores[number]), number)):
        if number not in removed:
            removed.update(partners[number])
    return sorted(removed)


def _groups(pairs: Tensor) -> list[list[int]]:
    """Return the numbers that pairs (P, 2) connect, directly or through others."""
    root: dict[int, int] = {}

    def find(number: int) -> int:
        while root.setdefault(number, number) != number:
            number = root[number] = root[root[number]]
        return number

    for one, other in pairs.tolist():
        first, second = sorted((find(one), find(other)))
        root[second] = first
    groups: dict[int, list[int]] = {}
    for number in sorted(root):
        groups.setdefault(find(number), []).append(number)
    return list(groups.values())


def _union(parts: Detections) -> Detections:
    """Return one detection for the parts of an object."""
    box = torch.cat([parts.boxes[:, :2].amin(dim=0), parts.boxes[:, 2:].amax(dim=0)])
    masks = None if parts.masks is None else onto(parts.masks, parts.boxes, box).amax(dim=0, keepdim=True)
    return Detections(box[None], parts.scores.max()[None], parts.classes[:1], masks)


def _covered(found: Detections, others: Detections) -> Tensor:
    """Return whether detections are inside of others of their class, (N,) bool."""
    result = torch.zeros(len(found.scores), dtype=torch.bool)
    for start in range(0, len(result), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        inside = intersections(found.boxes[part], others.boxes) > INSIDE * areas(found.boxes[part])[:, None]
        result[part] = (inside & (found.classes[part][:, None] == others.classes[None])).any(dim=1)
    return result
