"""Suppression of detections that overlap better ones (NMS, soft-NMS). Results do not depend on the order of equal
scores in a sort: candidates come sorted."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from swinv2_train.models.detection.boxes import overlaps

_TOGETHER = 10_000
"""Boxes at most whose groups are suppressed in one call (mmcv)."""
LOWEST_SCORE = 1e-3
"""Detections with a lower score after soft-NMS are removed (mmcv)."""


def decreasing(scores: Tensor) -> Tensor:
    """Return the indices that sort scores from high to low; equal ones keep their order."""
    return scores.argsort(stable=True, descending=True)


def suppress(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return the indices of the boxes that no kept box of the same group before them overlaps more than `threshold`.

    Args:
        boxes: (N, 4), from the highest score to the lowest.
        groups: (N,) int64: class of each box, or another number; from 0.
    """
    if not len(boxes):
        return groups.new_zeros(0)
    if len(boxes) <= _TOGETHER:
        # Groups are moved apart. In float64, because the places of float32 would be used up.
        wide = boxes.double()
        wide = wide + (groups * (wide.max() - wide.min() + 1))[:, None]
        return _kept(wide, threshold)
    found = [places[_kept(boxes[places], threshold)] for places in _by_group(groups)]
    return torch.cat(found).sort().values


def _kept(boxes: Tensor, threshold: float) -> Tensor:
    # Numbers in place of scores, because the order of equal scores is not specified.
    order = torch.arange(len(boxes), 0, -1, device=boxes.device).to(boxes.dtype)
    return nms(boxes, order, threshold)


def soften(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Linear soft-NMS (arXiv 1704.04503): from the best to the worst, each box of a group multiplies the scores of the
    boxes that it overlaps more than `threshold` by 1 - overlap.

    Args:
        boxes: (N, 4), from the highest score to the lowest.
        scores: (N,).
        groups: (N,) int64.

    Returns:
        Indices of the remaining boxes, from the highest new score to the lowest, and these scores.
    """
    scores = scores.clone()
    for places in _by_group(groups):
        scores[places] = _softened(boxes[places], scores[places], threshold)
    order = decreasing(scores)
    order = order[scores[order] >= LOWEST_SCORE]
    return order, scores[order]


def _softened(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the new scores of the boxes of one group; 0 for removed ones."""
    # One by one, with as many steps as boxes remain: on the host, where a step is cheap.
    device, boxes, scores = scores.device, boxes.cpu(), scores.cpu()
    waiting, result = torch.ones(len(boxes), dtype=torch.bool), torch.zeros_like(scores)
    while True:
        best = int(torch.where(waiting, scores, -1.0).argmax())
        if not waiting[best] or scores[best] < LOWEST_SCORE:
            return result.to(device)
        waiting[best] = False
        result[best] = scores[best]
        overlap = overlaps(boxes[best : best + 1], boxes)[0]
        scores = torch.where(waiting & (overlap > threshold), scores * (1 - overlap), scores)


def _by_group(groups: Tensor) -> list[Tensor]:
    return [(groups == group).nonzero().flatten() for group in groups.unique().tolist()]
