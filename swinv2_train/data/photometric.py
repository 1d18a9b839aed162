"""Photometric distortion of training images: random brightness, contrast, saturation, and hue.

From SSD (arXiv 1512.02325), with the numbers that mmsegmentation uses for ADE20K. It computes in float32 and rounds
once, at the end; mmsegmentation rounds down after every operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.pixels import largest_value

PROBABILITY = 0.5
"""Of each of the four operations."""
BRIGHTNESS = 32 / 255
"""Largest change, as a fraction of the full range."""
CONTRAST = SATURATION = (0.5, 1.5)
"""Lowest and highest factor."""
HUE = 18 / 180
"""Largest rotation, as a fraction of the circle. mmsegmentation adds up to 18 to the hue of OpenCV, which has 180
steps."""
_ROWS = 32
"""Rows that are distorted at a time: few enough to stay in the cache of the CPU."""


@dataclass(frozen=True)
class Photometric:
    """A drawn distortion. The defaults change nothing."""

    brightness: float = 0.0
    """Added to all values, as a fraction of the full range."""
    contrast: float = 1.0
    """Factor of all values."""
    saturation: float = 1.0
    """Factor of the saturation (HSV), which ends at 1."""
    hue: float = 0.0
    """Rotation of the hue (HSV), as a fraction of the circle."""
    contrast_last: bool = False
    """True if the contrast changes after saturation and hue, False if before."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Photometric:
        """Draw one. It always takes equally many numbers from the generator."""
        brightness, contrast, saturation, hue, order = (rng.random(5) < PROBABILITY).tolist()
        amounts = rng.random(4).tolist()
        between = [low + (high - low) * amount for (low, high), amount in zip(_RANGES, amounts, strict=True)]
        return cls(
            between[0] if brightness else 0.0,
            between[1] if contrast else 1.0,
            between[2] if saturation else 1.0,
            between[3] if hue else 0.0,
            contrast_last=order,
        )

    def __call__(self, image: Tensor) -> Tensor:
        """Return the distorted image: (3, H, W) uint8 or uint16 -> a new tensor of the same shape and dtype."""
        if self == Photometric(contrast_last=self.contrast_last):
            return image
        largest = np.float32(largest_value(image))
        pixels = image.numpy()
        distorted = np.empty_like(pixels)
        for row in range(0, pixels.shape[1], _ROWS):
            rows = pixels[:, row : row + _ROWS].astype(np.float32)
            rows /= largest
            self._distort(rows)
            rows *= largest
            distorted[:, row : row + _ROWS] = np.rint(rows, out=rows)
        return torch.from_numpy(distorted)

    def _distort(self, rows: np.ndarray) -> None:
        """Distort float32 values (3, rows, W) in [0, 1], in place."""
        if self.brightness:
            rows += np.float32(self.brightness)
            np.clip(rows, 0, 1, out=rows)
        if not self.contrast_last:
            self._change_contrast(rows)
        if self.saturation != 1 or self.hue:
            _recolor(rows, np.float32(self.saturation), np.float32(self.hue))
        if self.contrast_last:
            self._change_contrast(rows)

    def _change_contrast(self, rows: np.ndarray) -> None:
        if self.contrast != 1:
            rows *= np.float32(self.contrast)
            np.minimum(rows, 1, out=rows)


_RANGES = ((-BRIGHTNESS, BRIGHTNESS), CONTRAST, SATURATION, (-HUE, HUE))


def _recolor(rows: np.ndarray, saturation: np.float32, hue: np.float32) -> None:
    """Multiply the saturation and rotate the hue of float32 values (3, rows, W) in [0, 1], in place.

    In HSV, the value is the highest of the three channels, and the saturation is the fraction of it by which the lowest
    channel is lower. Each channel lies between both, by the distance of its own hue: within a sixth of the circle it is
    the highest, beyond a third it is the lowest, and linear in between.
    """
    highest = rows.max(axis=0)
    spread = highest - rows.min(axis=0)
    divisor = np.where(spread > 0, spread, np.float32(1))  # gray has no hue
    changed = spread * np.minimum(saturation, highest / divisor)
    if not hue:
        rows -= highest
        rows *= changed / divisor
        rows += highest
        return
    red, green, blue = rows
    # In sixths of the circle: red at 0, green at 2, blue at 4.
    position = np.where(highest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    position = np.where(highest == red, (green - blue) / divisor, position)
    position += 6 * hue
    lowest = highest - changed
    for channel, own in enumerate((0, 2, 4)):
        distance = np.abs(position - np.float32(own))
        np.minimum(distance, 6 - distance, out=distance)
        level = np.clip(2 - distance, 0, 1)
        level *= changed
        np.add(lowest, level, out=rows[channel])
