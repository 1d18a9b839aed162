"""Objects of an image, boxes with categories and masks, as they are in the member `objects.json` of a packed sample.

All coordinates are in pixels of the image as it is packed, upright. A box is (left, top, right, bottom) as in
`geometry`; in JSON it is [left, top, width, height], as in COCO.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swinv2_train.data.errors import BrokenSample
from swinv2_train.reading import finite_number, is_count

MEMBER = "objects.json"
"""Member with the objects of a packed sample."""
Mask = list[list[float]] | dict[str, Any]
"""Polygons, each [x1, y1, x2, y2, ...], or {"size": [height, width], "counts": compressed RLE of COCO}."""
LEAST_NUMBERS = 6
"""Numbers of a polygon with three points."""


@dataclass(frozen=True)
class Objects:
    """Objects of one image."""

    size: tuple[int, int]
    """Height and width of the image."""
    image_id: int | str | None = None
    """Original id of the image; None if it had none."""
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    """(N, 4) float64: left, top, right, bottom."""
    categories: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(N,) int64: numbers in the category table of the card, from 0."""
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) bool: True for a region with a group of objects, which is not a single one."""
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(N,) float64: area in pixels as the source states it, by which COCO's evaluation calls an object small."""
    ids: tuple[int | str | None, ...] = ()
    """Original id of each annotation."""
    masks: tuple[Mask | None, ...] = ()
    """Mask of each object; None for those that only have a box."""

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_json(cls, content: Any) -> Objects:
        """Read the content of a member `objects.json`.

        Raises:
            BrokenSample: with the first entry that is missing or has another form.
        """
        if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
            raise BrokenSample("it has no list of objects")
        size = (content.get("height"), content.get("width"))
        if not all(is_count(side) and side for side in size):
            raise BrokenSample(f"its width and height are {size[1]!r:.20} and {size[0]!r:.20}")
        if not isinstance(content.get("id"), (int, str, type(None))):
            raise BrokenSample(f"its id {content['id']!r:.40} is not a number or a text")
        found = content["objects"]
        for number, one in enumerate(found):
            reason = _problem(one)
            if reason:
                raise BrokenSample(f"object {number}: {reason}")
        boxes = np.array([one["bbox"] for one in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return cls(
            size=size,
            image_id=content.get("id"),
            boxes=boxes,
            categories=np.array([one["category"] for one in found], np.int64),
            crowd=np.array([one["iscrowd"] for one in found], bool),
            areas=np.array([one["area"] for one in found], np.float64),
            ids=tuple(one.get("id") for one in found),
            masks=tuple(one.get("segmentation") for one in found),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same objects."""
        extents = self.boxes[:, 2:] - self.boxes[:, :2]
        boxes = np.concatenate([self.boxes[:, :2], extents], axis=1)
        objects = []
        for number, mask in enumerate(self.masks):
            one = {
                "bbox": _rounded(boxes[number]),
                "category": int(self.categories[number]),
                "iscrowd": int(self.crowd[number]),
                "area": _rounded(self.areas[number : number + 1])[0],
                "id": self.ids[number],
            }
            objects.append(one if mask is None else one | {"segmentation": mask})
        return {"id": self.image_id, "width": self.size[1], "height": self.size[0], "objects": objects}

    def taken(self, numbers: np.ndarray) -> Objects:
        """Return some of the objects, by a mask (N,) bool or by their numbers, in this order."""
        chosen = np.flatnonzero(numbers) if numbers.dtype == bool else numbers
        return Objects(
            self.size,
            self.image_id,
            self.boxes[chosen],
            self.categories[chosen],
            self.crowd[chosen],
            self.areas[chosen],
            tuple(self.ids[number] for number in chosen.tolist()),
            tuple(self.masks[number] for number in chosen.tolist()),
        )


def _rounded(values: np.ndarray) -> list[float]:
    """Return numbers with four decimals, without the noise that sums of decimals end in."""
    return np.round(values, 4).tolist()


def _problem(one: Any) -> str | None:
    """Return why an entry is not an object; None if it is one."""
    if not isinstance(one, dict):
        return "it is not a JSON object"
    box = one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or any(finite_number(value) is None for value in box):
        return f"its bbox {box!r:.60} is not four numbers"
    if min(box[2:]) < 0:
        return f"its bbox {box!r:.60} has a negative width or height"
    if not is_count(one.get("category")):
        return f"its category {one.get('category')!r:.40} is not a number from 0"
    if one.get("iscrowd") not in (0, 1):
        return f"its iscrowd {one.get('iscrowd')!r:.40} is not 0 or 1"
    if finite_number(one.get("area")) is None:
        return f"its area {one.get('area')!r:.40} is not a number"
    if not isinstance(one.get("id"), (int, str, type(None))):
        return f"its id {one.get('id')!r:.40} is not a number or a text"
    mask = one.get("segmentation")
    return None if mask is None else _mask_problem(mask)


def _mask_problem(mask: Any) -> str | None:
    if isinstance(mask, dict):
        size = mask.get("size")
        sound = isinstance(size, list) and len(size) == 2 and all(map(is_count, size))
        return None if sound and isinstance(mask.get("counts"), str) else "its segmentation is not a compressed RLE"
    if not isinstance(mask, list) or not mask:
        return "its segmentation is neither polygons nor RLE"
    for polygon in mask:
        if not isinstance(polygon, list) or len(polygon) < LEAST_NUMBERS or len(polygon) % 2:
            return "its segmentation has a polygon that is not pairs of numbers for three points or more"
        if any(finite_number(value) is None for value in polygon):
            return "its segmentation has a coordinate that is not a number"
    return None
