"""Objects of an image as a detector reads and returns them. Boxes are left, top, right, bottom in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

_BITS = tuple(range(7, -1, -1))


@dataclass
class Bitmaps:
    """Masks of the N objects of an image, packed to bits. Each covers its own window of the canvas."""

    bits: Tensor
    """(bytes,) uint8: `np.packbits(bitmap.ravel())` of every object, end to end; each starts on a byte."""
    windows: Tensor
    """(N, 4) int64: top, left, bottom, right on the canvas. An object with an empty window has no mask."""

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def present(self) -> Tensor:
        """(N,) bool: True for objects with a mask."""
        top, left, bottom, right = self.windows.unbind(1)
        return (bottom > top) & (right > left)

    def unpacked(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield the bitmaps of some objects, uint8 (h, w) of 0 and 1, the size of their windows."""
        sides = [(bottom - top, right - left) for top, left, bottom, right in self.windows.tolist()]
        ends = list(accumulate(-(-height * width // 8) for height, width in sides))
        shifts = torch.tensor(_BITS, dtype=torch.uint8, device=self.bits.device)
        for index in indices:
            height, width = sides[index]
            packed = self.bits[ends[index - 1] if index else 0 : ends[index]]
            yield ((packed[:, None] >> shifts) & 1).flatten()[: height * width].view(height, width)

    def crop(self, index: int) -> Tensor:
        """Return the bitmap of one object, see `unpacked`."""
        return next(self.unpacked([index]))

    def to(self, device: torch.device) -> Bitmaps:
        """Return the same masks on a device."""
        return Bitmaps(self.bits.to(device), self.windows.to(device))


@dataclass
class Targets:
    """Objects of a training image."""

    boxes: Tensor
    """(N, 4) float32, on the canvas."""
    classes: Tensor
    """(N,) int64."""
    crowd: Tensor
    """(M, 4) float32: boxes of regions with uncounted objects, which are never positive."""
    masks: Bitmaps | None = None

    def to(self, device: torch.device) -> Targets:
        """Return the same objects on a device."""
        masks = None if self.masks is None else self.masks.to(device)
        return Targets(self.boxes.to(device), self.classes.to(device), self.crowd.to(device), masks)


@dataclass
class Detections:
    """Objects that a detector has found in an image, from the highest score to the lowest."""

    boxes: Tensor
    """(D, 4) at least float32, on the canvas, inside of the image."""
    scores: Tensor
    """(D,) from 0 to 1. Equal ones are in the order of the proposals, then of the classes."""
    classes: Tensor
    """(D,) int64."""
    masks: Tensor | None = None
    """(D, 28, 28) probabilities inside of the box; None for a detector without masks."""


def check_finite(*outputs: Tensor) -> None:
    """Check the outputs of a part of a model.

    Raises:
        FloatingPointError: if a value is not finite.
    """
    if not all(output.isfinite().all() for output in outputs):
        raise FloatingPointError("the outputs of the model are not finite")
