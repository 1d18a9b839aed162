"""Check that the boxes of a data set mean what their form says, in pixels: of COCO x, y, width, and height."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swinv2_train.data.errors import DataError
from swinv2_train.reading import finite_number

_FEWEST = 4
"""Boxes that are needed to conclude anything from most of them."""
_COCO = "bbox must be [x, y, width, height]"


@dataclass
class BoxCheck:
    """Counts over the boxes, from which another meaning of their numbers shows."""

    form: str = _COCO
    """The numbers as the source should have them, for messages."""
    count: int = 0
    fractions: int = 0
    """Boxes without a number above 1."""
    leaving: int = 0
    """Boxes that leave their image by more than rounding."""
    like_corners: int = 0
    """Boxes whose last two numbers are above the first two, as right and bottom always are."""

    def add(self, box: Any, size: tuple[int, int] | None) -> None:
        """Count a box.

        Args:
            size: height and width of its image, if the source states them.
        """
        numbers = list(map(finite_number, box)) if isinstance(box, list) and len(box) == 4 else [None]
        if None in numbers:
            return
        x, y, width, height = (number or 0.0 for number in numbers)
        self.count += 1
        self.fractions += max(x, y, width, height) <= 1
        self.like_corners += width > x and height > y
        if size is not None:
            self.leaving += x + width > size[1] * 1.02 + 2 or y + height > size[0] * 1.02 + 2

    def check(self, where: str) -> None:
        """Check the counts. Raises DataError if most boxes mean something else."""
        if self.count < _FEWEST:
            return
        expected = f"{self.form} in pixels"
        if self.fractions > 0.9 * self.count:
            raise DataError(f"{where}: its boxes are fractions of the image; {expected}")
        leave = f"{self.leaving:,} of {self.count:,} boxes leave their image"
        if self.like_corners > 0.98 * self.count and self.leaving > 0.1 * self.count:
            raise DataError(f"{where}: its boxes look like [left, top, right, bottom], because {leave}; {expected}")
        if self.leaving > 0.5 * self.count:
            raise DataError(f"{where}: {leave}; {expected} of an image with the stated width and height")
