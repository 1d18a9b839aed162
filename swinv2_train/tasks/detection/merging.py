"""One list of detections from several views of an image, such as mirrored or scaled ones, or from its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from swinv2_train.models.detection.boxes import clip, overlaps
from swinv2_train.models.detection.structures import Detections
from swinv2_train.models.detection.suppression import decreasing, soften
from swinv2_train.tasks.detection.masks import pasted, resampled
from swinv2_train.tasks.detection.records import Found


def in_original(
    found: Detections,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    corner: tuple[float, float] = (0.0, 0.0),
    mirrored: float | None = None,
) -> Detections:
    """Return the detections of a view in pixels of the original image.

    Args:
        scale: pixels of the view for a pixel of the original, of rows and of columns.
        corner: top and left of the view in the original.
        mirrored: width of the view if it is mirrored from left to right; None if it is not.
    """
    left, top, right, bottom = found.boxes.unbind(dim=1)
    masks = found.masks
    if mirrored is not None:
        left, right = mirrored - right, mirrored - left
        masks = None if masks is None else masks.flip(-1)
    sides = (left / scale[1] + corner[1], top / scale[0] + corner[0])
    ends = (right / scale[1] + corner[1], bottom / scale[0] + corner[0])
    return replace(found, boxes=torch.stack([*sides, *ends], dim=1), masks=masks)


def as_found(found: Detections, size: tuple[int, int]) -> Found:
    """Return detections in pixels of the original image with their masks as RLE.

    Args:
        size: height and width of the original image, to which the boxes are clipped.
    """
    boxes = clip(found.boxes.float().cpu(), size).numpy()
    masks = None if found.masks is None else pasted(found.masks.float().cpu().numpy(), boxes, size)
    return Found(boxes, found.classes.cpu().numpy(), found.scores.float().cpu().numpy(), masks)


def on_host(found: Detections) -> Detections:
    """Return detections in the memory of the host."""
    masks = None if found.masks is None else found.masks.cpu()
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.classes.cpu(), masks)


def concatenated(parts: Sequence[Detections]) -> Detections:
    """Return all detections in one list, one part after the other; at least one part."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Detections(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.classes for part in parts]),
        torch.cat(masks) if len(masks) == len(parts) else None,
    )


def joined(parts: Sequence[Detections]) -> Detections:
    """Return all detections in one list, from the highest score to the lowest; equal ones keep their order."""
    every = concatenated(parts)
    return chosen(every, decreasing(every.scores))


def chosen(found: Detections, index: Tensor) -> Detections:
    """Return some detections, by their numbers or by a bool for each."""
    masks = None if found.masks is None else found.masks[index]
    return Detections(found.boxes[index], found.scores[index], found.classes[index], masks)


def softened(views: Sequence[Detections], threshold: float, *, most: int | None = None) -> Detections:
    """Return the best detections of all views, after soft suppression within each class.

    Args:
        views: in pixels of the original image.
        threshold: overlap (IoU) above which the score of the lower of two detections of a class is lowered; see
            `models.detection.suppression.soften`.
        most: detections to return at most; None: all.
    """
    found = joined(views)
    kept, scores = soften(found.boxes, found.scores, found.classes, threshold)
    return replace(chosen(found, kept[:most]), scores=scores[:most])


def averaged(views: Sequence[Detections], threshold: float, *, most: int | None = None) -> Detections:
    """Return the mean of the detections of an object in all views (weighted boxes fusion, arXiv 1910.13302).

    From the highest score to the lowest, a detection joins the group of its class whose first box it overlaps most, if
    that is more than `threshold`, and the group has none of its view; otherwise it begins a group. Boxes and masks of a
    group are averaged with the scores as weights. Its score is their sum divided by the number of views, so that an
    object that few views show has a low one.

    Args:
        views: in pixels of the original image.
        most: detections to return at most; None: all.
    """
    found = joined(views)
    order = decreasing(torch.cat([view.scores for view in views]))
    view = torch.repeat_interleave(torch.arange(len(views)), torch.tensor([len(one.scores) for one in views]))
    view = view.to(order.device)[order].tolist()
    groups: list[list[int]] = []
    for number in found.classes.unique().tolist():
        groups += _groups((found.classes == number).nonzero().flatten().tolist(), found.boxes, view, threshold)
    groups.sort(key=lambda group: group[0])
    boxes, scores, masks = [], [], []
    for group in groups:
        weights = found.scores[group] / found.scores[group].sum()
        boxes.append((found.boxes[group] * weights[:, None]).sum(dim=0))
        scores.append(found.scores[group].sum() / len(views))
        if found.masks is not None:
            parts = found.masks[group], found.boxes[group]
            masks.append((onto(*parts, boxes[-1]) * weights[:, None, None].to(found.masks.dtype)).sum(dim=0))
    if not groups:
        return found
    result = Detections(
        torch.stack(boxes),
        torch.stack(scores),
        found.classes[[group[0] for group in groups]],
        torch.stack(masks) if masks else None,
    )
    return chosen(result, decreasing(result.scores)[:most])


def _groups(members: Sequence[int], boxes: Tensor, view: Sequence[int], threshold: float) -> list[list[int]]:
    """Return the groups of the detections of one class; each begins with its highest score."""
    groups: list[list[int]] = []
    seen: list[set[int]] = []
    overlap = overlaps(boxes[members], boxes[members]).cpu().numpy()
    first: list[int] = []  # places of the first members
    for place, member in enumerate(members):
        fits = [
            -1.0 if view[member] in views else float(overlap[place, start])
            for start, views in zip(first, seen, strict=True)
        ]
        best = int(np.argmax(fits)) if fits else -1
        if fits and fits[best] > threshold:
            groups[best].append(member)
            seen[best].add(view[member])
            continue
        groups.append([member])
        seen.append({view[member]})
        first.append(place)
    return groups


def onto(masks: Tensor, boxes: Tensor, target: Tensor) -> Tensor:
    """Return the probabilities of masks (N, M, M) inside of boxes (N, 4) in the cells of another box (4,)."""
    moved = [
        resampled(mask, box, target.cpu().numpy())
        for mask, box in zip(masks.float().cpu().numpy(), boxes.cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(moved)).to(masks)
