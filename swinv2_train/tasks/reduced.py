"""A reduced picture of an image of any size, put together from strips."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.pixels import largest_value


class ReducedImage:
    """An image divided by a whole factor: each pixel is the mean of its source pixels.

    Args:
        size: height and width of the source. Rows and columns at the end that fill no pixel are omitted.
    """

    def __init__(self, size: tuple[int, int], channels: int, factor: int) -> None:
        self.factor = factor
        height, width = (max(1, side // factor) for side in size)
        self._sums = np.zeros((channels, height, width), np.float32)
        self._counts = np.zeros(height, np.float32)
        self.deep = False
        """True if the image has 16 bits, so that a picture of it needs to be stretched."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self._sums.shape[1], self._sums.shape[2]

    def add(self, first: int, image: Tensor) -> None:
        """Add a strip.

        Args:
            first: number of its first row.
            image: (C, rows, W) as decoded.
        """
        factor, (height, width) = self.factor, self.size
        self.deep = image.dtype == torch.uint16
        values = image.numpy().astype(np.float32) / largest_value(image)
        values = values[:, :, : width * factor]
        values = values.reshape(*values.shape[:2], width, -1).mean(axis=3)
        for row in range(values.shape[1]):
            target = (first + row) // factor
            if target >= height:
                break
            self._sums[:, target] += values[:, row]
            self._counts[target] += 1

    def image(self) -> np.ndarray:
        """Return the picture, (C, height, width) float32 from 0 to 1."""
        return self._sums / np.maximum(self._counts, 1)[:, None]
