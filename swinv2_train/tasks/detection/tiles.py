"""Detections in an image that is too large for one forward pass: in overlapping tiles, then merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.data.tiling import Tiling
from swinv2_train.models.detection import Detections
from swinv2_train.tasks.detection.merging import concatenated
from swinv2_train.tasks.detection.tile_merging import merge_tiles

Tile = tuple[int, int, int, int]
"""Top, left, height, and width in the image."""


def tiles_of(size: tuple[int, int], task: DetectionConfig) -> list[Tile]:
    """Return the tiles of an image of this height and width, row by row; without `task.tile` a single one."""
    if task.tile is None:
        return [(0, 0, *size)]
    return Tiling(task.tile, int(task.tile * task.tile_overlap)).boxes(*size)


def detect_in_tiles(
    tiles: Sequence[Tile],
    size: tuple[int, int],
    detect: Callable[[Sequence[Tile]], Sequence[Detections | None]],
    *,
    nms: float,
    batch: int = 1,
) -> Detections | None:
    """Return the detections in an image, in its pixels, on the host; None if no tile has data.

    Args:
        tiles: as of `tiles_of`, all of the same size.
        size: height and width of the image.
        detect: returns the detections of each of some tiles, in its pixels; None for a tile without data.
        nms: overlap (IoU) above which detections of a class are of the same object.
        batch: tiles in one call of `detect`.
    """
    found: list[Detections | None] = []
    for group in _groups(tiles, batch):
        found += detect(group)
    used = [(tile, each) for tile, each in zip(tiles, found, strict=True) if each is not None]
    if not used:
        return None
    if len(tiles) == 1:
        return concatenated([used[0][1]])
    return merge_tiles(_boxes([tile for tile, _ in used]), [each for _, each in used], size, nms)


def _groups(tiles: Sequence[Tile], batch: int) -> Iterator[Sequence[Tile]]:
    for start in range(0, len(tiles), batch):
        yield tiles[start : start + batch]


def _boxes(tiles: Sequence[Tile]) -> Tensor:
    """Return left, top, right, and bottom of tiles, (T, 4) float64."""
    corners = [(left, top, left + width, top + height) for top, left, height, width in tiles]
    return torch.tensor(corners, dtype=torch.float64)
