"""Objects of a training image on its canvas: boxes, classes, and masks that are rasterized and packed to bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.geometry import Crop
from swinv2_train.data.object_masks import crop_window
from swinv2_train.data.objects import Objects

BOXES, CLASSES, CROWD, MASK_BITS, MASK_WINDOWS = "boxes", "classes", "crowd", "mask_bits", "mask_windows"
"""Entries of a batch."""
LEAST_SIDE = 1.0
"""Narrower or lower boxes are dropped, in pixels."""
_CUT = 1e-3
"""Pixels that a box must lose to count as cut."""
Window = tuple[int, int, int, int]
"""Top, left, bottom, and right of a mask on the canvas."""


@dataclass
class Annotations:
    """Objects of an image on its canvas."""

    boxes: np.ndarray
    """(N, 4) float32: left, top, right, bottom."""
    classes: np.ndarray
    """(N,) int64."""
    crowd: np.ndarray
    """(M, 4) float32: boxes of crowd regions."""
    windows: list[Window] | None = None
    """Of each mask; empty if the object has none. None without masks."""
    bitmaps: list[np.ndarray] | None = None
    """(h, w) uint8 of 0 and 1, the size of each window; None without masks."""

    def entries(self) -> dict[str, Tensor]:
        """Return the ragged entries of a batch: `boxes`, `classes`, `crowd`, and with masks `mask_bits` and
        `mask_windows`, which are those of `models.detection.Bitmaps`."""
        arrays = {BOXES: self.boxes, CLASSES: self.classes, CROWD: self.crowd}
        if self.windows is not None and self.bitmaps is not None:
            packed = [np.packbits(bitmap) for bitmap in self.bitmaps]
            arrays[MASK_BITS] = np.concatenate([np.zeros(0, np.uint8), *packed])
            arrays[MASK_WINDOWS] = np.array(self.windows, np.int64).reshape(-1, 4)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def of_entries(cls, entries: dict[str, Tensor]) -> Annotations:
        """Return the objects that `entries` packed."""
        found = cls(*(entries[name].numpy() for name in (BOXES, CLASSES, CROWD)))
        if MASK_BITS in entries:
            found.windows = [tuple(window) for window in entries[MASK_WINDOWS].tolist()]
            found.bitmaps = unpacked(entries[MASK_BITS].numpy(), found.windows)
        return found

    def taken(self, numbers: np.ndarray) -> Annotations:
        """Return some of the objects, by their numbers in this order, and all crowd regions."""
        windows = None if self.windows is None else [self.windows[number] for number in numbers.tolist()]
        bitmaps = None if self.bitmaps is None else [self.bitmaps[number] for number in numbers.tolist()]
        return Annotations(self.boxes[numbers], self.classes[numbers], self.crowd, windows, bitmaps)


def largest(boxes: np.ndarray, most: int) -> np.ndarray:
    """Return the numbers of the largest of the boxes (N, 4), at most this many, in their order."""
    if len(boxes) <= most:
        return np.arange(len(boxes))
    return np.sort(np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")[:most])


def unpacked(bits: np.ndarray, windows: list[Window]) -> list[np.ndarray]:
    """Return the bitmaps (h, w) uint8 that are packed end to end; each starts on a byte."""
    found, first = [], 0
    for top, left, bottom, right in windows:
        pixels = (bottom - top) * (right - left)
        last = first + -(-pixels // 8)
        found.append(np.unpackbits(bits[first:last], count=pixels).reshape(bottom - top, right - left))
        first = last
    return found


def annotations_under(objects: Objects, crop: Crop, *, masks: bool, most: int) -> Annotations:
    """Return the objects of an image under a crop.

    The box of an object that the border of the crop cuts is that of the rest of its mask, if it has one. An object of
    which nothing is left is dropped.

    Args:
        crop: drawn for the size of the image.
        masks: rasterize the masks.
        most: of more objects, the largest remain.

    Raises:
        BrokenSample: if a mask is damaged.
    """
    crowd, _ = crop.boxes(torch.from_numpy(objects.boxes[objects.crowd]), LEAST_SIDE)
    single = objects.taken(~objects.crowd)
    moved, kept = crop.boxes(torch.from_numpy(single.boxes), LEAST_SIDE)
    chosen = largest(moved.numpy(), most)
    single = single.taken(kept.numpy()[chosen])
    found = Annotations(moved.numpy()[chosen], single.categories, crowd.numpy())
    if not masks:
        return found
    scale = np.array([crop.scaled[1] / crop.box[3], crop.scaled[0] / crop.box[2]])
    entire = (single.boxes[:, 2:] - single.boxes[:, :2]) * scale
    cut = ((found.boxes[:, 2:] - found.boxes[:, :2]) < entire - _CUT).any(axis=1)
    found.windows, found.bitmaps = [], []
    for mask in single.masks:
        nothing = (0, 0, 0, 0), np.zeros((0, 0), np.uint8)
        window, bitmap = nothing if mask is None else crop_window(mask, objects.size, crop)
        found.windows.append(window)
        found.bitmaps.append(bitmap)
    return _within_masks(found, cut & np.array([mask is not None for mask in single.masks], bool))


def within(box: np.ndarray, window: Window) -> np.ndarray:
    """Return the part of a box (4,) in the window of its mask; without an extent if they do not meet."""
    top, left, bottom, right = window
    low = np.maximum(box[:2], np.array([left, top], np.float32))
    return np.concatenate([low, np.maximum(low, np.minimum(box[2:], np.array([right, bottom], np.float32)))])


def _within_masks(found: Annotations, cut: np.ndarray) -> Annotations:
    """Return the objects with the boxes of those that are cut reduced to their masks; drop those of which none is
    left."""
    assert found.windows is not None
    for number in np.flatnonzero(cut):
        found.boxes[number] = within(found.boxes[number], found.windows[number])
    return found.taken(np.flatnonzero((found.boxes[:, 2:] - found.boxes[:, :2] >= LEAST_SIDE).all(axis=1)))
