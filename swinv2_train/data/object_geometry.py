"""Objects of an image that is turned upright, resized, or cut into tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from swinv2_train.data.geometry import Crop
from swinv2_train.data.object_masks import (
    bitmap,
    crop_bitmaps,
    cropped_polygons,
    encoded,
    mask_area,
    mask_box,
    mask_window,
    moved_polygons,
    window_of,
)
from swinv2_train.data.objects import Mask, Objects
from swinv2_train.data.pixels import upright

LEAST_VISIBLE = 0.1
"""Objects are left out of a tile that shows less than this fraction of their area."""
_LEAST_SIDE = 1.0


def turned_upright(objects: Objects, orientation: int) -> Objects:
    """Return objects of an image as it is stored, in the coordinates of the upright image.

    Args:
        orientation: EXIF orientation, 1 to 8.
    """
    height, width = objects.size

    def move(points: np.ndarray) -> np.ndarray:
        x, y = (points[:, 1], points[:, 0]) if orientation >= 5 else (points[:, 0], points[:, 1])
        wide, tall = (height, width) if orientation >= 5 else (width, height)
        x = wide - x if orientation in (2, 3, 6, 7) else x
        y = tall - y if orientation in (3, 4, 7, 8) else y
        return np.stack([x, y], axis=1)

    def turned(mask: Mask | None) -> Mask | None:
        if not isinstance(mask, dict):
            return None if mask is None else moved_polygons(mask, move)
        pixels = torch.from_numpy(np.ascontiguousarray(bitmap(mask, objects.size)))
        return encoded(upright(pixels[None], orientation)[0].numpy())

    corners = move(objects.boxes.reshape(-1, 2)).reshape(-1, 2, 2)
    return replace(
        objects,
        size=(width, height) if orientation >= 5 else (height, width),
        boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        masks=tuple(map(turned, objects.masks)),
    )


def resized(objects: Objects, size: tuple[int, int]) -> Objects:
    """Return objects of an image that is resized as a whole to a height and width."""
    crop = Crop(objects.size, (0, 0, *objects.size), size, size)

    def shrunk(mask: Mask | None) -> Mask | None:
        if isinstance(mask, dict):
            return encoded(crop_bitmaps(mask, objects.size, crop))
        return None if mask is None else cropped_polygons(mask, crop)

    tall, wide = size[0] / objects.size[0], size[1] / objects.size[1]
    return replace(
        objects,
        size=size,
        boxes=objects.boxes * (wide, tall, wide, tall),
        areas=objects.areas * (wide * tall),
        masks=tuple(map(shrunk, objects.masks)),
    )


def tile_of(objects: Objects, tile: tuple[int, int, int, int]) -> Objects:
    """Return the objects that a part of the image shows enough of, in the coordinates of the part.

    Those that reach out of it get the visible part of their box, mask (as RLE), and area. Original ids are dropped,
    because an image and an object can be in several tiles.

    Args:
        tile: top, left, height, and width of the part.
    """
    top, left, height, width = tile
    shift = np.array([left, top, left, top], np.float64)
    cut = (objects.boxes - shift).clip(0, [width, height, width, height])
    shown = objects.taken(((cut[:, 2:] - cut[:, :2]) >= _LEAST_SIDE).all(axis=1))
    boxes, areas, masks, kept = [], [], [], []
    for number in range(len(shown)):
        box = shown.boxes[number] - shift
        part, share, mask = _visible(box, shown.masks[number], objects.size, tile)
        if share >= LEAST_VISIBLE and min(part[2] - part[0], part[3] - part[1]) >= _LEAST_SIDE:
            kept.append(number)
            boxes.append(part)
            areas.append(shown.areas[number] * share)
            masks.append(mask)
    return replace(
        shown.taken(np.array(kept, np.int64)),
        size=(height, width),
        image_id=None,
        ids=(None,) * len(kept),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        masks=tuple(masks),
    )


def _visible(
    box: np.ndarray, mask: Mask | None, size: tuple[int, int], tile: tuple[int, int, int, int]
) -> tuple[np.ndarray, float, Mask | None]:
    """Return the visible part of a box, the visible fraction of the area, and the mask in the coordinates of a tile.

    Args:
        box: left, top, right, bottom relative to the tile.
        mask: in the entire image, whose height and width are `size`.
    """
    top, left, height, width = tile
    part = box.clip(0, [width, height, width, height])
    inside = bool((part == box).all())
    if mask is None:
        return part, float(np.prod(part[2:] - part[:2]) / np.prod(box[2:] - box[:2])), None
    if isinstance(mask, dict):
        pixels = window_of(mask, size, (top, left, top + height, left + width))
    else:
        moved = moved_polygons(mask, lambda points: points - (left, top))
        if inside:
            return part, 1.0, moved
        pixels = bitmap(moved, (height, width))
    if not inside:
        window = mask_window(pixels)
        part = np.array([*np.maximum(part[:2], window[1::-1]), *np.minimum(part[2:], window[3:1:-1])])
    return part, 1.0 if inside else float(pixels.sum()) / max(_num_pixels(mask, size), 1), encoded(pixels)


def _num_pixels(mask: Mask, size: tuple[int, int]) -> int:
    """Return the number of pixels of a mask. Polygons are rasterized in their own extent, not in the entire image."""
    if isinstance(mask, dict):
        return mask_area(mask, size)
    left, top, right, bottom = (int(value) for value in mask_box(mask, size))
    left, top = max(left, 0), max(top, 0)
    extent = min(bottom + 1, size[0]) - top, min(right + 1, size[1]) - left
    if min(extent) <= 0:
        return 0
    return int(bitmap(moved_polygons(mask, lambda points: points - (left, top)), extent).sum())
