"""Masks of objects: polygons and run lengths (RLE) as COCO has them, rasterized, cropped, and encoded.

Polygons are rasterized as by COCO's own code. A mask keeps its form until pixels are needed, so that a polygon under a
geometry is rasterized once, at the end, and not resized as pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.objects import Mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from swinv2_train.data.geometry import Crop


def rle_of(mask: Mask, size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as compressed RLE: {"size": [height, width], "counts": str}.

    Args:
        mask: polygons, or RLE whose counts are a list of numbers, str, or bytes.
        size: height and width of the image.

    Raises:
        BrokenSample: if it is for another size, or its counts do not fill the image.
    """
    from faster_coco_eval import mask as coco

    if isinstance(mask, dict):
        if tuple(mask["size"]) != tuple(size):
            raise BrokenSample(
                f"its mask is for {mask['size'][1]} x {mask['size'][0]} pixels, and the image has {size[1]} x {size[0]}"
            )
        counts = mask["counts"]
        counts = run_lengths(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, np.int64)
        if counts.ndim != 1 or (counts < 0).any() or counts.sum() != size[0] * size[1]:
            raise BrokenSample(f"the counts of its mask do not fill an image of {size[1]} x {size[0]} pixels")
        if isinstance(mask["counts"], (str, bytes)):
            return {"size": list(size), "counts": _text(mask["counts"])}
        return _plain(coco.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size))
    return _plain(coco.merge(coco.frPyObjects([list(map(float, polygon)) for polygon in mask], *size)))


def bitmap(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    """Return a mask as (height, width) uint8 of 0 and 1. Raises BrokenSample as `rle_of`."""
    from faster_coco_eval import mask as coco

    return coco.decode(rle_of(mask, size))


def window_of(mask: dict[str, Any], size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """Return a part of a mask given as compressed RLE, uint8 of 0 and 1, without decoding the other columns.

    Args:
        window: top, left, bottom, right of the part.
    """
    top, left, bottom, right = window
    ends = np.cumsum(run_lengths(mask["counts"]))
    first, last = left * size[0], right * size[0]
    taken = slice(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last, "left")) + 1)
    edges = np.concatenate([[first], ends[taken].clip(first, last)])
    values = (np.arange(len(ends))[taken] % 2).astype(np.uint8)
    return np.repeat(values, np.diff(edges)).reshape(right - left, size[0]).T[top:bottom]


def encoded(pixels: np.ndarray) -> dict[str, Any]:
    """Return the compressed RLE of a bitmap (H, W), in which every number but 0 belongs to the object."""
    from faster_coco_eval import mask as coco

    return _plain(coco.encode(np.asfortranarray(pixels != 0, dtype=np.uint8)))


def crop_bitmaps(mask: Mask, size: tuple[int, int], crop: Crop) -> np.ndarray:
    """Return a mask under a crop, `crop.size` uint8 of 0 and 1; arguments and errors as for `crop_window`."""
    (top, left, bottom, right), pixels = crop_window(mask, size, crop)
    result = np.zeros(crop.size, np.uint8)
    result[top:bottom, left:right] = pixels
    return result


def crop_window(mask: Mask, size: tuple[int, int], crop: Crop) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Return the window of a mask under a crop, see `mask_window`, and its pixels, uint8 of 0 and 1.

    Polygons are moved by the geometry and then rasterized. Pixels of RLE follow the crop as those of a label map do.
    The work depends on the size of the object, not on that of the image.

    Args:
        size: height and width of the image, for which the crop was drawn.

    Raises:
        BrokenSample: as `rle_of`.
    """
    (top, left), pixels = _rle_part(mask, size, crop) if isinstance(mask, dict) else _polygon_part(mask, crop)
    first, start, last, end = mask_window(pixels)
    if last == 0:
        return (0, 0, 0, 0), np.zeros((0, 0), np.uint8)
    return (top + first, left + start, top + last, left + end), pixels[first:last, start:end]


def _rle_part(mask: dict[str, Any], size: tuple[int, int], crop: Crop) -> tuple[tuple[int, int], np.ndarray]:
    """Return top and left of a part of the result of a crop that has the entire mask, and its pixels."""
    from faster_coco_eval import mask as coco

    code = rle_of(mask, size)
    left, top, width, height = (int(side) for side in coco.toBbox(code))
    rows, columns = crop.source_pixels()
    inside_rows = np.flatnonzero((rows >= top) & (rows < top + height))
    inside_columns = np.flatnonzero((columns >= left) & (columns < left + width))
    if not inside_rows.size or not inside_columns.size:
        return (0, 0), np.zeros((0, 0), np.uint8)
    part = window_of(code, size, (top, left, top + height, left + width))
    pixels = part.take(rows[inside_rows] - top, axis=0).take(columns[inside_columns] - left, axis=1)
    return (int(inside_rows[0]), int(inside_columns[0])), pixels


def _polygon_part(polygons: list[list[float]], crop: Crop) -> tuple[tuple[int, int], np.ndarray]:
    """As `_rle_part`. Only these pixels are rasterized."""
    points = [np.array(polygon).reshape(-1, 2) for polygon in cropped_polygons(polygons, crop)]
    every = np.concatenate(points)
    limit = np.array(crop.size[::-1])
    low = (np.floor(every.min(axis=0)) - 1).clip(0, limit).astype(np.int64)
    high = (np.ceil(every.max(axis=0)) + 1).clip(0, limit).astype(np.int64)
    if (high <= low).any():
        return (0, 0), np.zeros((0, 0), np.uint8)
    width, height = (high - low).tolist()
    pixels = bitmap([(each - low).ravel().tolist() for each in points], (height, width))
    return (int(low[1]), int(low[0])), pixels


def cropped_polygons(polygons: list[list[float]], crop: Crop) -> list[list[float]]:
    """Return polygons in the coordinates of the result of a crop; parts outside of it are not cut off."""
    top, left, height, width = crop.box
    scale = np.array([crop.scaled[1] / width, crop.scaled[0] / height])
    corner = np.array(crop.corner[::-1])

    def moved(points: np.ndarray) -> np.ndarray:
        points = (points - (left, top)) * scale - corner
        if crop.horizontal:
            points[:, 0] = crop.size[1] - points[:, 0]
        if crop.vertical:
            points[:, 1] = crop.size[0] - points[:, 1]
        return points

    return moved_polygons(polygons, moved)


def moved_polygons(polygons: list[list[float]], move: Callable[[np.ndarray], np.ndarray]) -> list[list[float]]:
    """Return polygons after a function that maps points (N, 2) x, y to points, with four decimals."""
    return [np.round(move(np.array(polygon).reshape(-1, 2)), 4).ravel().tolist() for polygon in polygons]


def mask_window(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the smallest window with all pixels of a bitmap (H, W); zeros if it has none.

    Bottom and right are the first row and column outside of it, as in a box.
    """
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def mask_box(mask: Mask, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a mask: the extent of its polygons, or of its pixels. Raises BrokenSample."""
    if isinstance(mask, dict):
        from faster_coco_eval import mask as coco

        left, top, width, height = coco.toBbox(rle_of(mask, size)).tolist()
        return left, top, left + width, top + height
    points = np.concatenate([np.array(polygon).reshape(-1, 2) for polygon in mask])
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def mask_area(mask: Mask, size: tuple[int, int]) -> int:
    """Return the number of pixels of a mask. Raises BrokenSample as `rle_of`."""
    from faster_coco_eval import mask as coco

    return int(coco.area(rle_of(mask, size)))


def run_lengths(counts: str | bytes) -> np.ndarray:
    """Return the run lengths in compressed counts: (N,) int64.

    A character has six bits, of which one says that the number continues. Starting with the fourth run, a number is the
    difference to the run before the last. Raises BrokenSample if the text is damaged.
    """
    codes = np.frombuffer(counts if isinstance(counts, bytes) else counts.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 0x20) == 0)
    damaged = BrokenSample("the counts of its mask are damaged")
    if not codes.size or (codes < 0).any() or (codes > 63).any() or ends.size == 0 or ends[-1] != len(codes) - 1:
        raise damaged
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 9:  # 45 bits
        raise damaged
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[ends] & 0x10) != 0
    values -= np.where(negative, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):  # runs of 0 and of 1 are two separate chains of differences
        values[first::2] = np.cumsum(values[first::2])
    return values


def _plain(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": _text(rle["counts"])}


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
