"""Results of a detector on one held-out image: its objects and what was found, in pixels of the original image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_train.errors import RunError

if TYPE_CHECKING:
    from swinv2_train.data.objects import Objects


@dataclass(frozen=True)
class Category:
    """A class of objects. Its number inside of this package is its place in a list of categories."""

    id: int | str
    """As in the source of the data, where the ids may have gaps."""
    name: str


@dataclass
class Found:
    """Objects in one image: true ones, or detections."""

    boxes: np.ndarray
    """(N, 4) left, top, right, bottom: float32 of detections, float64 of true objects, whose source has decimals."""
    classes: np.ndarray
    """(N,) int64."""
    scores: np.ndarray
    """(N,) float32; 1 for true objects."""
    masks: list[dict[str, Any] | None] | None = None
    """Compressed RLE at the size of the image, with `counts` as str; None without masks. Of single objects, only crowd
    regions may have None; they cover their box."""
    crowd: np.ndarray | None = None
    """(N,) bool, of true objects: regions of many objects, which are neither missed nor wrong; None: none of them."""
    areas: np.ndarray | None = None
    """(N,) float64, of true objects: area in pixels as in the source; None: that of the boxes."""

    @classmethod
    def of(cls, objects: Objects, *, masks: bool) -> Found:
        """Return the objects of an image as they are in its sample.

        Args:
            masks: with their masks, as RLE.

        Raises:
            BrokenSample: if a mask is for an image of another size.
        """
        from swinv2_train.data.object_masks import rle_of

        codes = [None if mask is None else rle_of(mask, objects.size) for mask in objects.masks]
        return cls(
            objects.boxes,
            objects.categories,
            np.ones(len(objects), np.float32),
            codes if masks else None,
            objects.crowd,
            objects.areas,
        )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def is_crowd(self) -> np.ndarray:
        """(N,) bool."""
        return np.zeros(len(self), bool) if self.crowd is None else np.asarray(self.crowd, bool)

    @property
    def box_areas(self) -> np.ndarray:
        """(N,) float64."""
        left, top, right, bottom = np.asarray(self.boxes, np.float64).reshape(-1, 4).T
        return (right - left) * (bottom - top)

    def chosen(self, index: np.ndarray) -> Found:
        """Return some of the objects.

        Args:
            index: numbers of objects, or a bool for each.
        """
        places = np.flatnonzero(index) if index.dtype == bool else index
        return Found(
            self.boxes[places],
            self.classes[places],
            self.scores[places],
            None if self.masks is None else [self.masks[place] for place in places],
            None if self.crowd is None else self.crowd[places],
            None if self.areas is None else self.areas[places],
        )


@dataclass
class ImageRecord:
    """One held-out image: the record of an evaluation at a position."""

    image_id: int | str
    """As in the source; the position + 1 if the source has none."""
    size: tuple[int, int]
    """Height and width of the original image."""
    truth: Found
    found: Found

    def check(self) -> None:
        """Check that the detections are numbers.

        Raises:
            RunError: naming the image.
        """
        for what, values in (("score", self.found.scores), ("box", self.found.boxes)):
            if not np.isfinite(values).all():
                fault = f"the {what} of a detection is not finite; the weights are broken"
                raise RunError(f"image {self.image_id}: {fault}")


def in_order(records: Mapping[int, ImageRecord]) -> list[ImageRecord]:
    """Return the records by the ids of their images, then by position.

    Equal scores in different images count in this order, as in the tools of COCO, whatever the number of ranks.
    """
    return [record for _, record in sorted(records.items(), key=lambda entry: (id_order(entry[1].image_id), entry[0]))]


def id_order(identifier: int | str) -> tuple[bool, int, str]:
    """Return a key to sort ids by: numbers by their value, then texts."""
    return (True, 0, identifier) if isinstance(identifier, str) else (False, int(identifier), "")
