"""Annotations drawn over the images of a contact sheet: label maps, and objects with their masks and names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop
from swinv2_train.data.label_image import decode_label_map
from swinv2_train.data.object_masks import crop_bitmaps
from swinv2_train.data.objects import MEMBER, Objects
from swinv2_train.lettering import fitted, font
from swinv2_train.reading import UnreadableError, parse_json

_TEXT = 11
_LEGEND_ROW = 20
_LEGEND_COLUMN = 168
_MOST_IN_LEGEND = 40
_OPACITY = 0.55  # of the colors of classes over the image
_MASK_OPACITY = 0.4
_CROWD = "white"
"""Color of the boxes of crowd regions."""


class Overlay(Protocol):
    """Annotations of one kind."""

    member: str
    """Member that contains them."""

    def over(self, picture: Image.Image, data: bytes, max_pixels: int) -> Image.Image:
        """Return a picture with its annotations over it. Raises BrokenSample if they cannot be read."""
        ...

    def legend(self, width: int) -> Image.Image:
        """Return the names and colors of the classes that were drawn, on lines of a width in pixels."""
        ...


@dataclass
class LabelOverlay:
    """Label maps to draw over the images, and the classes that were drawn."""

    member: str
    ignore: int
    """Value of pixels without a class."""
    paint: Callable[[np.ndarray], np.ndarray]
    """(H, W) class numbers -> (H, W, 3) uint8 colors."""
    names: Sequence[str] | None = None
    """Names of the classes; None: their numbers."""
    drawn: set[int] = field(default_factory=set)

    def over(self, picture: Image.Image, data: bytes, max_pixels: int) -> Image.Image:
        """Return a picture with its label map over it. Raises BrokenSample if that cannot be read."""
        labels = decode_label_map(data, max_pixels)
        size = (picture.height, picture.width)
        source = (int(labels.shape[0]), int(labels.shape[1]))
        small = Crop(source, (0, 0, *source), size, size).label_map(labels).numpy()
        self.drawn.update(np.unique(small).tolist())
        return Image.blend(picture, Image.fromarray(self.paint(small)), _OPACITY)

    def legend(self, width: int) -> Image.Image:
        """Return the names and colors of the classes that were drawn, on lines of a width in pixels."""
        colors = {n: tuple(self.paint(np.array([[n]], np.uint16))[0, 0].tolist()) for n in sorted(self.drawn)}
        return _legend([(self._name(number), color) for number, color in colors.items()], width)

    def _name(self, number: int) -> str:
        if number == self.ignore:
            return f"no class ({number})"
        return self.names[number] if self.names and number < len(self.names) else f"class {number}"


@dataclass
class ObjectOverlay:
    """Objects to draw over the images: boxes with the names of their categories, and masks half transparent."""

    color: Callable[[int], tuple[int, int, int]]
    """Category number -> RGB."""
    names: Sequence[str] | None = None
    """Names of the categories; None: their numbers."""
    member: str = MEMBER
    drawn: set[int] = field(default_factory=set)

    def over(self, picture: Image.Image, data: bytes, max_pixels: int) -> Image.Image:
        """Return a picture with its objects over it, the largest first. Raises BrokenSample if they cannot be read."""
        del max_pixels  # masks are decoded at the size of their image, which was decoded before
        try:
            found = Objects.from_json(parse_json(data))
        except UnreadableError as error:
            raise BrokenSample(f"{self.member}: {error}") from None
        size = (picture.height, picture.width)
        crop = Crop(found.size, (0, 0, *found.size), size, size)
        found = found.taken(np.argsort(-found.areas, kind="stable"))
        picture = self._with_masks(picture, found, crop)
        draw, letters = ImageDraw.Draw(picture), font(_TEXT)
        scale = np.array([size[1] / found.size[1], size[0] / found.size[0]] * 2)
        for box, category, crowd in zip(found.boxes * scale, found.categories.tolist(), found.crowd, strict=True):
            self.drawn.add(category)
            left, top, right, bottom = box.tolist()
            right, bottom = max(right - 1, left), max(bottom - 1, top)
            draw.rectangle((left, top, right, bottom), outline=_CROWD if crowd else self.color(category))
            name = fitted(self._name(category), letters, right - left)
            if len(name) > 1 and bottom - top > _TEXT:
                draw.text((left + 2, top), name, "white", letters, stroke_width=1, stroke_fill="black")
        return picture

    def legend(self, width: int) -> Image.Image:
        """Return the names and colors of the categories that were drawn, on lines of a width in pixels."""
        return _legend([(self._name(number), self.color(number)) for number in sorted(self.drawn)], width)

    def _with_masks(self, picture: Image.Image, found: Objects, crop: Crop) -> Image.Image:
        pixels = np.array(picture, np.float32)
        for mask, category in zip(found.masks, found.categories.tolist(), strict=True):
            if mask is not None:
                covered = crop_bitmaps(mask, found.size, crop).astype(bool)
                color = np.array(self.color(category), np.float32)
                pixels[covered] += _MASK_OPACITY * (color - pixels[covered])
        return Image.fromarray(pixels.round().astype(np.uint8))

    def _name(self, number: int) -> str:
        return self.names[number] if self.names and number < len(self.names) else f"category {number}"


def _legend(entries: Sequence[tuple[str, tuple[int, ...]]], width: int) -> Image.Image:
    """Return names next to their colors, on lines of a width in pixels."""
    shown, more = entries[:_MOST_IN_LEGEND], len(entries) - _MOST_IN_LEGEND
    columns = max(1, width // _LEGEND_COLUMN)
    rows = -(-(len(shown) + (more > 0)) // columns)
    strip = Image.new("RGB", (width, rows * _LEGEND_ROW + 8), "white")
    draw, letters = ImageDraw.Draw(strip), font(_TEXT)
    for place, (name, color) in enumerate(shown):
        left, top = 8 + place % columns * _LEGEND_COLUMN, 4 + place // columns * _LEGEND_ROW
        draw.rectangle((left, top, left + 12, top + 12), color, outline="gray")
        draw.text((left + 18, top), fitted(name, letters, _LEGEND_COLUMN - 26), "black", letters)
    if more > 0:
        left, top = 8 + len(shown) % columns * _LEGEND_COLUMN, 4 + len(shown) // columns * _LEGEND_ROW
        draw.text((left, top), f"and {more} more", "gray", letters)
    return strip
