"""Random size and part of a training image of detection, and the canvas that it is padded to.

With `task.scaling=jitter`, the canvas is `data.resolution` (large-scale jitter, arXiv 2012.07177). With `short`, it is
the smallest that fits of five for each short side. Padding takes part in attention, so a canvas must not depend on the
other images of a micro-batch: it is a function of the image, the seed, the position, and the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from swinv2_train.config.checks import resolution
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.config.tasks.detection_doubts import JITTER
from swinv2_train.config.tasks.detection_sizes import fitted
from swinv2_train.data.geometry import Crop, draw_part
from swinv2_train.data.order import sample_rng

_LONGER = (1.0, 1.5)
"""Longer side of a canvas, as a multiple of its short side; the last canvas has the longest side that is allowed. Most
photographs have 4:3 or 3:2."""
_REDUCTION = 8
"""Patches per cell of the last stage, along a side: canvases are whole cells."""


@dataclass(frozen=True)
class Drawn:
    """Random geometry of a training image."""

    crop: Crop
    canvas: tuple[int, int]
    """Height and width that the result of the crop is padded to, at the bottom and right."""


class Drawing:
    """Draws the geometry of training images."""

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, DetectionConfig)
        self.task, self.augment = config.task, config.data.augment
        self.seed = config.seed
        self.size = resolution(config)
        self.multiple = _REDUCTION * config.model.patch_size

    def draw(self, source: tuple[int, int], batch: int, rng: np.random.Generator) -> Drawn:
        """Return the geometry of a sample.

        Args:
            source: height and width of the image.
            batch: number of its global batch.
            rng: of this sample.
        """
        horizontal, vertical = rng.random(2).tolist()
        flips = horizontal < self.augment.hflip, vertical < self.augment.vflip
        if self.task.scaling == JITTER:
            fitting = min(side / length for side, length in zip(self.size, source, strict=True))
            factor = rng.uniform(*self.task.scale) * fitting
            return Drawn(draw_part(source, self.size, factor, flips, rng), self.size)
        box = (0, 0, *source)
        if self.task.crop_sides and rng.random() < 0.5:
            box = self._part(source, rng)
        short = self.short_side(batch)
        tall, wide = fitted(box[2:], short, self.task.long_side)
        crop = Crop(source, box, (tall, wide), (tall, wide), horizontal=flips[0], vertical=flips[1])
        return Drawn(crop, self._canvas((tall, wide), short))

    def short_side(self, batch: int) -> int:
        """Return the short side of all images of a global batch."""
        sides = self.task.short_sides
        return sides[int(sample_rng(self.seed, batch, "short side").integers(len(sides)))]

    @cached_property
    def canvases(self) -> dict[int, list[tuple[int, int]]]:
        """Short and long side of the canvases for each short side of an image, from the smallest on."""
        found = {}
        for short in set(self.task.short_sides):
            longer = [min(round(factor * short), self.task.long_side) for factor in _LONGER] + [self.task.long_side]
            pairs = [(self._whole(short), self._whole(side)) for side in longer]
            found[short] = list(dict.fromkeys(pairs))
        return found

    def _canvas(self, size: tuple[int, int], short: int) -> tuple[int, int]:
        """Return the smallest canvas, upright or lying, that an image of this size fits on."""
        side, longer = next((one, two) for one, two in self.canvases[short] if max(size) <= two)
        return (longer, side) if size[0] > size[1] else (side, longer)

    def _part(self, source: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Return top, left, height, and width of a random part, whose sides are drawn at a random size of the image."""
        shorts, (low, high) = self.task.crop_short_sides, self.task.crop_sides
        short = shorts[int(rng.integers(len(shorts)))]
        parts = []
        for side, scaled in zip(source, fitted(source, short, self.task.long_side), strict=True):
            part = int(rng.integers(min(low, scaled), min(high, scaled) + 1))
            parts.append(min(side, max(1, round(part * side / scaled))))
        top, left = (int(rng.integers(0, side - part + 1)) for side, part in zip(source, parts, strict=True))
        return top, left, parts[0], parts[1]

    def _whole(self, side: int) -> int:
        return -(-side // self.multiple) * self.multiple
