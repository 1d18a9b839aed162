"""Assignment of candidate boxes, which are anchors or proposals, to the objects of an image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from swinv2_train.models.detection.boxes import areas, intersections, overlaps

BACKGROUND, NEITHER = -1, -2
"""Values of a candidate without an object; `NEITHER` counts as nothing."""
_CROWDED = 0.5
"""Fraction of a candidate in crowd regions above which it may count as nothing (mmdetection, where it is used)."""
_PAIRS = 1 << 22
"""Pairs of a candidate and an object at a time: 16 MiB of each of the few intermediate results."""


def match(candidates: Tensor, truths: Tensor, high: float, low: float, best_from: float | None = None) -> Tensor:
    """Return the object of each candidate (mmdetection's MaxIoUAssigner).

    A candidate belongs to the object that it overlaps most, if the overlap (IoU) is at least `high`. It is background
    if all of its overlaps are below `low`.

    Args:
        candidates: (A, 4).
        truths: (G, 4).
        best_from: each object also gets all candidates that overlap it most, if that overlap is at least this; of
            several such objects, a candidate gets the last. None: only the rule above.

    Returns:
        (A,) int64: index of an object, `BACKGROUND`, or `NEITHER`.
    """
    count = len(candidates)
    best = candidates.new_zeros(count)
    index = torch.zeros(count, dtype=torch.int64, device=candidates.device)
    forced = torch.full_like(index, BACKGROUND)
    for first, some in _chunks(truths, count):
        overlap = overlaps(some, candidates)
        found, place = overlap.max(dim=0)
        index = torch.where(found > best, place + first, index)
        best = torch.maximum(best, found)
        if best_from is not None and count:
            most = overlap.max(dim=1, keepdim=True).values
            object_, candidate = ((overlap == most) & (most >= best_from)).nonzero(as_tuple=True)
            forced.scatter_reduce_(0, candidate, object_ + first, "amax")
    matched = torch.where(best >= high, index, torch.where(best < low, BACKGROUND, NEITHER))
    return torch.where(forced >= 0, forced, matched)


def without_crowd(matched: Tensor, candidates: Tensor, crowd: Tensor) -> Tensor:
    """Return the result of `match` with `NEITHER` for background of which more than half is in one crowd region.

    Args:
        crowd: (M, 4).
    """
    most = candidates.new_zeros(len(candidates))
    for _, some in _chunks(crowd, len(candidates)):
        most = torch.maximum(most, intersections(some, candidates).max(dim=0).values)
    crowded = most > _CROWDED * areas(candidates)
    return torch.where((matched == BACKGROUND) & crowded, NEITHER, matched)


def _chunks(boxes: Tensor, candidates: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the boxes in parts, each with the index of its first."""
    size = max(1, _PAIRS // max(1, candidates))
    for first in range(0, len(boxes), size):
        yield first, boxes[first : first + size]
