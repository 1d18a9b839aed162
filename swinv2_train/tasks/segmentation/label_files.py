"""Files of predicted label maps: PNG, or for TIFF images a TIFF with their georeference, written row by row."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from swinv2_train.data.geo_tags import GeoTags, nodata_tag
from swinv2_train.tasks.segmentation.colors import IGNORED, palette
from swinv2_train.writing import replacing, write_bytes

_TILE = 256
_PALETTE = 256
_BIG = 1 << 31
"""Bytes from which a TIFF gets 64-bit offsets; a compressed map is smaller than that in almost any case."""


@dataclass(frozen=True)
class LabelFile:
    """Facts about a label map that its file records."""

    size: tuple[int, int]
    """Height and width."""
    classes: int
    dtype: np.dtype
    """uint8 or uint16."""
    geo: GeoTags | None = None
    has_nodata: bool = False
    """True if pixels without data get the value `ignore`, which a TIFF then declares as GDAL_NODATA."""

    @property
    def ignore(self) -> int:
        """Value of pixels without a class."""
        return int(np.iinfo(self.dtype).max)

    def write_png(self, path: Path, strips: Iterable[np.ndarray]) -> None:
        """Write a PNG with the colors of the classes, or with 16 bits a gray one.

        Args:
            strips: (rows, W) each, from top to bottom.

        Raises:
            OSError: if it cannot be written.
        """
        labels = np.concatenate(list(strips))
        image = Image.fromarray(labels)
        if self.dtype == np.uint8:
            image.putpalette(_colors(self.classes).tobytes())
        stream = io.BytesIO()
        image.save(stream, "PNG")
        write_bytes(path, stream.getvalue())

    def write_tiff(self, path: Path, strips: Iterable[np.ndarray]) -> None:
        """Write a TIFF with the colors of the classes, or with 16 bits a gray one, in tiles and compressed.

        Args:
            strips: (rows, W) each, from top to bottom; no more than a few of them are in memory.

        Raises:
            OSError: if it cannot be written.
        """
        import tifffile

        tags = [*(self.geo.tags if self.geo else ()), *([nodata_tag(self.ignore)] if self.has_nodata else [])]
        colored = self.dtype == np.uint8
        with replacing(path) as temporary:
            tifffile.imwrite(
                temporary,
                _tiles(strips),
                shape=self.size,
                dtype=self.dtype,
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="palette" if colored else "minisblack",
                colormap=_colors(self.classes).T.astype(np.uint16) * 257 if colored else None,
                bigtiff=self.size[0] * self.size[1] * self.dtype.itemsize > _BIG,
                extratags=tags,
                metadata=None,
                software=False,
                maxworkers=1,
            )


def _colors(classes: int) -> np.ndarray:
    """Return the colors of all values of 8 bits, (256, 3) uint8."""
    colors = np.tile(np.array(IGNORED, np.uint8), (_PALETTE, 1))
    colors[:classes] = palette(classes)
    return colors


def _tiles(strips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield tiles row by row; those at the right and bottom may be smaller."""
    for band in bands(strips, _TILE):
        for left in range(0, band.shape[1], _TILE):
            yield np.ascontiguousarray(band[:, left : left + _TILE])


def bands(strips: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield the same rows in groups of `rows`; the last may be smaller."""
    waiting: list[np.ndarray] = []
    count = 0
    for strip in strips:
        waiting.append(strip)
        count += len(strip)
        while count >= rows:
            joined = np.concatenate(waiting)
            yield joined[:rows]
            waiting, count = [joined[rows:]], count - rows
    if count:
        yield np.concatenate(waiting)
