"""Rules that turn annotations as programs write them into clean objects.

An annotation is an object of COCO's JSON with `category` as a number of the table. Readers of other formats make the
same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.object_cleaning import REVERSED, Cleaning
from swinv2_train.data.object_geometry import turned_upright
from swinv2_train.data.object_masks import mask_area, mask_box, rle_of
from swinv2_train.data.object_store import Annotated
from swinv2_train.data.objects import LEAST_NUMBERS, Mask, Objects
from swinv2_train.reading import finite_number

_LEAST = 1.0
"""Boxes that are narrower or lower than this many pixels are dropped."""
_SLACK = 1.0
"""Pixels that a box may leave the image by without being counted: rounding in the source."""


class _Dropped(Exception):  # noqa: N818 (an outcome of one annotation, not an error)
    """An annotation that is dropped; the argument is the kind."""


def clean(source: Annotated, size: tuple[int, int], orientation: int) -> tuple[Objects, Cleaning]:
    """Return the objects of an image, and what was changed or dropped.

    Args:
        size: height and width of the image, upright.
        orientation: EXIF orientation by which the image was turned upright. If the annotations fit only the image as it
            is stored, they are turned with it.

    Raises:
        BrokenSample: if the annotations are for an image of another size.
    """
    cleaning, found = Cleaning(), []
    stated = source.size or _size_of_masks(source.annotations)
    stored = size[::-1] if orientation >= 5 else size
    turned = orientation if stated != size and stated == stored else 1
    if stated is not None and not turned > 1 and stated != size:
        raise BrokenSample(
            f"its annotations are for {stated[1]} x {stated[0]} pixels, and the image has {size[1]} x {size[0]}"
        )
    one = _Cleaner(stored if turned > 1 else size, cleaning)
    seen: set[str] = set()
    for number, annotation in enumerate(source.annotations):
        identity = annotation.get("id")
        one.name = f"{source.name}: {f'object {number}' if identity is None else f'annotation {identity}'}"
        try:
            if annotation.get("id_repeated"):
                content = json.dumps(annotation, sort_keys=True)
                if content in seen:
                    raise _Dropped("repeated")
                seen.add(content)
            found.append(one(annotation))
        except _Dropped as dropped:
            cleaning.add(str(dropped), one.name)
    height, width = one.size
    objects = Objects.from_json({"id": source.image_id, "width": width, "height": height, "objects": found})
    return (turned_upright(objects, turned) if turned > 1 else objects), cleaning


class _Cleaner:
    """Cleans the annotations of one image."""

    def __init__(self, size: tuple[int, int], cleaning: Cleaning) -> None:
        self.size, self._cleaning = size, cleaning
        self.name = ""
        """Name of the current annotation in messages."""

    def __call__(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """Return an annotation as an object of the member `objects.json`. Raises _Dropped."""
        if _is_set(annotation.get("ignore")):
            raise _Dropped("ignored")
        mask = self._mask(annotation.get("segmentation"))
        box = self._box(annotation.get("bbox"), mask)
        area = finite_number(annotation.get("area"))
        if area is None or area <= 0:
            self._cleaning.add("area", self.name)
            area = float(mask_area(mask, self.size)) if mask is not None else 0.0
            area = area or box[2] * box[3]
        if "iscrowd" not in annotation:
            self._cleaning.add("iscrowd", self.name)
        identity = annotation.get("id")
        if annotation.get("id_repeated") == "others":
            self._cleaning.add("id", self.name)
            identity = None
        crowd = int(_is_set(annotation.get("iscrowd")))
        one = {"bbox": box, "category": annotation["category"], "iscrowd": crowd, "area": area, "id": identity}
        return one if mask is None else one | {"segmentation": mask}

    def _box(self, stored: Any, mask: Mask | None) -> list[float]:
        """Return left, top, width, and height, cut at the border of the image."""
        if stored is None:
            if mask is None:
                raise _Dropped("no box")
            left, top, right, bottom = mask_box(mask, self.size)
        else:
            numbers = list(map(finite_number, stored)) if isinstance(stored, list) and len(stored) == 4 else [None]
            if None in numbers:
                raise _Dropped("no numbers")
            left, top, width, height = (float(number or 0.0) for number in numbers)
            right, bottom = left + width, top + height
        tall, wide = self.size
        if right < left or bottom < top:
            raise _Dropped(REVERSED)
        if right - left < _LEAST or bottom - top < _LEAST:
            raise _Dropped("degenerate")
        if left >= wide or top >= tall or right <= 0 or bottom <= 0:
            raise _Dropped("outside")
        cut = max(left, 0.0), max(top, 0.0), min(right, float(wide)), min(bottom, float(tall))
        if cut[2] - cut[0] < _LEAST or cut[3] - cut[1] < _LEAST:
            raise _Dropped("degenerate")
        if max(abs(a - b) for a, b in zip(cut, (left, top, right, bottom), strict=True)) > _SLACK:
            self._cleaning.add("clipped", self.name)
        return [cut[0], cut[1], cut[2] - cut[0], cut[3] - cut[1]]

    def _mask(self, stored: Any) -> Mask | None:
        """Return a segmentation as polygons or compressed RLE; None if there is none, as in sets of boxes."""
        if stored is None or (isinstance(stored, list) and not any(stored)):
            return None
        if isinstance(stored, dict):
            return self._rle(stored)
        if not isinstance(stored, list):
            raise _Dropped("mask")
        parts = stored if isinstance(stored[0], list) else [stored]  # a single polygon that is not in a list
        sound = [part for part in parts if _is_polygon(part)]
        if not sound:
            raise _Dropped("mask")
        polygons = [part for part in sound if self._shows(part)]
        if not polygons:
            raise _Dropped("outside")
        if len(sound) < len(parts):
            self._cleaning.add("polygon", self.name)
        if len(polygons) < len(sound):
            self._cleaning.add("part outside", self.name)
        return polygons

    def _shows(self, polygon: list[float]) -> bool:
        """Return whether a polygon meets the image, and leaves it by no more than its size."""
        for side, values in ((self.size[1], polygon[::2]), (self.size[0], polygon[1::2])):
            low, high = min(values), max(values)
            if high <= 0 or low >= side or low < -side - _SLACK or high > 2 * (side + _SLACK):
                return False
        return True

    def _rle(self, stored: dict[str, Any]) -> Mask:
        size, counts = stored.get("size"), stored.get("counts")
        if not (_is_size(size) and isinstance(counts, (str, list)) and counts):
            raise _Dropped("mask")
        if tuple(size) != self.size:
            raise _Dropped("mask size")
        if isinstance(counts, list) and not all(type(run) is int and 0 <= run < 2**40 for run in counts):
            raise _Dropped("mask")
        try:
            mask = rle_of(stored, self.size)
        except BrokenSample:
            raise _Dropped("mask") from None
        if not mask_area(mask, self.size):
            raise _Dropped("empty mask")
        return mask


def _is_polygon(part: Any) -> bool:
    """Return whether a part of a segmentation is a polygon of three points or more."""
    if not isinstance(part, list) or len(part) < LEAST_NUMBERS or len(part) % 2:
        return False
    return all(finite_number(number) is not None for number in part)


def _size_of_masks(annotations: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """Return the size that all run lengths of an image agree on; None without run lengths."""
    masks = [one["segmentation"] for one in annotations if isinstance(one.get("segmentation"), dict)]
    sizes = {tuple(mask["size"]) for mask in masks if _is_size(mask.get("size"))}
    return sizes.pop() if len(sizes) == 1 else None


def _is_set(flag: Any) -> bool:
    """Return whether a flag is 1 or true, also as a text."""
    return bool(flag) and str(flag).strip().lower() not in ("0", "false")


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)
