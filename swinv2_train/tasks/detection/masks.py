"""Masks of detections: from probabilities inside of boxes to run-length codes of whole images, in bounded memory.

A run-length code (RLE) is that of COCO: columns one after the other, lengths of runs that begin with zeros, compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from swinv2_train.data.object_masks import run_lengths

THRESHOLD = 0.5
_MOST_PIXELS = 1 << 20
"""Pixels of a mask that are computed at a time."""


def pasted(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = THRESHOLD) -> list[dict]:
    """Return masks at the size of the image, as RLE with `counts` as str.

    A pixel belongs to the mask if the probability at its center is at least the threshold. Probabilities are
    interpolated between the centers of the cells, and 0 outside of the box, as in detectron2 and MMDetection. Only the
    pixels of one box, and a million of them at most, are computed at a time.

    Args:
        masks: (N, M, M) float32 probabilities inside of the boxes.
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        size: height and width of the image.
    """
    codes = []
    for mask, box in zip(masks, np.asarray(boxes, np.float64), strict=True):
        starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for top, left, part in _parts(np.asarray(mask, np.float32), box, size):
            first, last = _runs(part >= threshold, top, left, size[0])
            starts.append(first)
            ends.append(last)
        codes.append(_code(np.concatenate(starts), np.concatenate(ends), size))
    return codes


def sampled(code: dict[str, Any], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask in some rows and columns, (rows, columns) bool, without decoding all of it.

    Args:
        code: compressed RLE.
    """
    ends = np.cumsum(run_lengths(code["counts"]))
    place = columns[None, :].astype(np.int64) * code["size"][0] + rows[:, None]
    return np.searchsorted(ends, place, side="right") % 2 == 1


def resampled(mask: np.ndarray, box: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the probabilities in the cells of another box, (M, M) float32; 0 outside of the mask's own.

    Args:
        mask: (M, M) probabilities inside of `box`.
        box, target: left, top, right, bottom.
    """
    cells = len(mask)
    (left, top, right, bottom), (x0, y0, x1, y1) = np.asarray(target, np.float64), np.asarray(box, np.float64)
    centers = (np.arange(cells) + 0.5) / cells
    rows = _coordinates(top + centers * (bottom - top), y0, y1, cells)
    columns = _coordinates(left + centers * (right - left), x0, x1, cells)
    return _columns(_rows(mask, rows), columns)


def _parts(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the probabilities at the pixels of a box, in groups of columns: top row, left column, (h, w) float32."""
    rows, columns = (_inside(box[side], box[side + 2], size[1 - side], len(mask)) for side in (1, 0))
    if not len(rows[0]) or not len(columns[0]):
        return
    mixed = _rows(mask, rows[1])
    step = max(1, _MOST_PIXELS // len(rows[0]))
    for start in range(0, len(columns[0]), step):
        yield int(rows[0][0]), int(columns[0][start]), _columns(mixed, columns[1][start : start + step])


def _inside(low: float, high: float, length: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels whose centers a mask reaches along one axis, and their coordinates in its cells."""
    if not high > low:
        return np.zeros(0, np.int64), np.zeros(0)
    margin = (high - low) / (2 * cells)
    pixels = np.arange(max(0, int(np.floor(low - margin))), min(length, int(np.ceil(high + margin))))
    return pixels, _coordinates(pixels + 0.5, low, high, cells)


def _coordinates(places: np.ndarray, low: float, high: float, cells: int) -> np.ndarray:
    """Return places along an axis in units of cells, 0 at the center of the first; between -1 and `cells`."""
    return ((places - low) / (high - low) * cells - 0.5).clip(-1, cells)


def _rows(mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return a mask interpolated between its rows, (M, M) -> (h, M) float32; 0 beyond the first and the last."""
    cells = len(mask)
    around = np.zeros((cells + 3, mask.shape[1]), np.float32)
    around[1 : cells + 1] = mask
    lower = np.floor(coordinates).astype(np.int64)
    share = (coordinates - lower).astype(np.float32)[:, None]
    return (1 - share) * around[lower + 1] + share * around[lower + 2]


def _columns(mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    return _rows(mask.T, coordinates).T


def _runs(part: np.ndarray, top: int, left: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends of the runs of ones of a part of an image, as places in its columns."""
    padded = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    padded[:, 1:-1] = part.T
    changes = np.diff(padded, axis=1)
    starts, ends = ((left + column) * height + top + row for column, row in map(np.nonzero, (changes > 0, changes < 0)))
    return starts, ends


def _code(starts: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return the RLE of runs of ones in their order."""
    from faster_coco_eval import mask as coco_masks

    between = ends[:-1] != starts[1:]  # a run that ends at the bottom continues at the top of the next column
    starts, ends = starts[np.append(True, between)[: len(starts)]], ends[np.append(between, True)[: len(ends)]]
    total = size[0] * size[1]
    bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [total]])
    counts = np.diff(bounds)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    code = coco_masks.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return {"size": list(size), "counts": code["counts"].decode()}
