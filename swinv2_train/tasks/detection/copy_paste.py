"""Copy-paste of objects by their masks (arXiv 2012.07177), with the rules of mmdetection.

A random number of the objects of another training image are pasted where they are. The other image has been drawn with
its own size and crop, so that its objects come at any size. Objects that are covered lose the covered pixels, and the
image loses those that are covered for the most part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.object_masks import mask_window
from swinv2_train.data.pixels import largest_value, same_depth
from swinv2_train.tasks.detection.annotations import Annotations, Window, largest

MOST_PASTED = 100
_MOVED, _REMAINING = 10.0, 300
"""A covered object remains if no side of its box moves by more than this many pixels, or if more than this many pixels
of its mask are left."""


def draw_pasted(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers of the objects that are pasted, of `count` that have a mask."""
    pasted = int(rng.integers(0, min(count, MOST_PASTED) + 1))
    return np.sort(rng.permutation(count)[:pasted])


def pasted_image(
    own: Tensor, other: Tensor, size: tuple[int, int], covered: np.ndarray, mean: Sequence[float]
) -> Tensor:
    """Return an image with some pixels of another one, (C, *size).

    Args:
        own, other: (C, h, w), each at the top left; 8 or 16 bits, or float32.
        size: height and width of the result.
        covered: (*size) bool, True for pixels of the other image.
        mean: per-channel color, in [0, 1], of pixels that neither image has.
    """
    own, other = same_depth([own, other])
    scale = largest_value(own)
    color = np.array(mean, np.float32)[:, None, None] * scale
    result = np.empty((len(own), *size), own.numpy().dtype)
    result[:] = color if own.is_floating_point() else np.rint(color)
    height, width = (min(side, length) for side, length in zip(size, own.shape[-2:], strict=True))
    result[:, :height, :width] = own.numpy()[:, :height, :width]
    rows, columns = np.nonzero(covered)
    result[:, rows, columns] = other.numpy()[:, rows, columns]
    return torch.from_numpy(result)


def paste(own: Annotations, other: Annotations, size: tuple[int, int], most: int) -> tuple[Annotations, np.ndarray]:
    """Return the objects of an image after those of another one are pasted, and the pixels that these cover.

    Args:
        own, other: with masks; every object of `other` has one.
        size: height and width of the image.
        most: of more objects, the largest remain.

    Returns:
        (objects, of the image first; (*size) bool).
    """
    covered = np.zeros(size, bool)
    other = _clipped(other, size)
    for window, bitmap in _masks(other):
        covered[_part(window)] |= bitmap.astype(bool)
    left = _uncovered(own, covered)
    joined = Annotations(
        np.concatenate([left.boxes, other.boxes]),
        np.concatenate([left.classes, other.classes]),
        own.crowd,
        [window for part in (left, other) for window, _ in _masks(part)],
        [bitmap for part in (left, other) for _, bitmap in _masks(part)],
    )
    return joined.taken(largest(joined.boxes, most)), covered


def _clipped(found: Annotations, size: tuple[int, int]) -> Annotations:
    """Return the objects with a pixel in an image of this size, cut at its border."""
    boxes, windows, bitmaps, kept = found.boxes.copy(), [], [], []
    for number, (window, bitmap) in enumerate(_masks(found)):
        top, left, bottom, right = window
        inside = bitmap[: max(0, size[0] - top), : max(0, size[1] - left)]
        if bottom > size[0] or right > size[1]:
            window, inside = _shrunk(window, inside)
            boxes[number] = _box(window)
        if inside.any():
            kept.append(number)
            windows.append(window)
            bitmaps.append(inside)
    return Annotations(boxes[kept], found.classes[kept], found.crowd, windows, bitmaps)


def _uncovered(found: Annotations, covered: np.ndarray) -> Annotations:
    """Return the objects without the covered pixels of their masks, and without those that are covered for the most
    part."""
    boxes, windows, bitmaps, kept = found.boxes.copy(), [], [], []
    for number, (window, bitmap) in enumerate(_masks(found)):
        hidden = covered[_part(window)] & bitmap.astype(bool)
        rest = bitmap & ~hidden if hidden.any() else bitmap
        if hidden.any():
            window, rest = _shrunk(window, rest)
            box = _box(window)
            near = (np.abs(box - found.boxes[number]) <= _MOVED).all()
            if not rest.any() or not (near or rest.sum() > _REMAINING):
                continue
            boxes[number] = box
        kept.append(number)
        windows.append(window)
        bitmaps.append(rest)
    return Annotations(boxes[kept], found.classes[kept], found.crowd, windows, bitmaps)


def _masks(found: Annotations) -> list[tuple[Window, np.ndarray]]:
    assert found.windows is not None
    assert found.bitmaps is not None
    return list(zip(found.windows, found.bitmaps, strict=True))


def _shrunk(window: Window, bitmap: np.ndarray) -> tuple[Window, np.ndarray]:
    """Return the smallest window of what is left of a mask."""
    top, left, bottom, right = mask_window(bitmap)
    return (window[0] + top, window[1] + left, window[0] + bottom, window[1] + right), bitmap[top:bottom, left:right]


def _part(window: Window) -> tuple[slice, slice]:
    return slice(window[0], window[2]), slice(window[1], window[3])


def _box(window: Window) -> np.ndarray:
    return np.array([window[1], window[0], window[3], window[2]], np.float32)
