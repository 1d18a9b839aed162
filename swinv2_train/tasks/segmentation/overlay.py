"""A picture of a label map over its image, of a limited size, put together from strips."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from swinv2_train.tasks.reduced import ReducedImage
from swinv2_train.tasks.segmentation.colors import painted, stripes
from swinv2_train.tracking.figures import to_pil

LONGEST_SIDE = 2048
_OPACITY = 0.5
_SEEN = 250_000
"""Pixels that decide the stretch of a picture."""
_STRIPES = 160
"""Stripes over pixels without data along the longer side; they are still visible in a thumbnail."""
_NARROWEST = 4


class Overlay:
    """A label map over its image. A larger one is reduced by a whole factor: the mean of the image, the label in the
    middle. An image of 16 bits is stretched to the range that its pixels with data use. Pixels without data are
    striped."""

    def __init__(self, size: tuple[int, int], channels: int, classes: int) -> None:
        self._classes = classes
        self._image = ReducedImage(size, channels, -(-max(size) // LONGEST_SIDE))
        self._labels = np.zeros(self._image.size, np.uint16)

    def add(self, first: int, image: Tensor, labels: np.ndarray) -> None:
        """Add a strip.

        Args:
            first: number of its first row.
            image: (C, rows, W) as decoded.
            labels: (rows, W).
        """
        self._image.add(first, image)
        factor, (height, width) = self._image.factor, self._image.size
        for row in range(len(labels)):
            target = (first + row) // factor
            if target < height and (first + row) % factor == factor // 2:
                self._labels[target] = labels[row, min(factor // 2, labels.shape[1] - 1) :: factor][:width]

    def draw(self) -> Image.Image:
        """Return the picture."""
        values = self._image.image()
        with_data = self._labels < self._classes
        step = -(-with_data.size // _SEEN)
        seen = values[:, with_data][:, None, ::step] if with_data.any() else values
        image = to_pil(values, like=seen, stretch=self._image.deep).convert("RGB")
        blended = np.array(Image.blend(image, Image.fromarray(painted(self._labels, self._classes)), _OPACITY))
        width = -(-max(with_data.shape) // _STRIPES)
        blended[~with_data] = stripes(with_data.shape, max(_NARROWEST, width))[~with_data]
        return Image.fromarray(blended)
