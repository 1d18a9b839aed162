"""Parts of large TIFF images, read without decoding the rest: only the strips or tiles that a part needs."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.tiff import ORIENTATION, check_pages, check_segments, full_resolution

if TYPE_CHECKING:
    import tifffile

Box = tuple[int, int, int, int]
"""Top, left, height, and width."""
_JPEG = (6, 7, 34892, 33007)  # compressions with tables outside of the segments
_KEPT_BYTES = 96 << 20
"""Decoded strips and tiles that are kept: neighboring parts share them. A row of parts of 1024 pixels in a scene of 8
channels of 8 bits and 10,000 pixels needs 78 MiB."""
_LARGEST_SEGMENT = 1 << 30


class TiffRegions:
    """An open TIFF of which parts are read.

    Raises:
        BrokenSample: if it has no image.
    """

    def __init__(self, file: BinaryIO, content: bytes) -> None:
        """Open a TIFF.

        Args:
            content: the same file as bytes, or as a memory map: the chain of its pages is checked before it is read.
        """
        import tifffile

        check_pages(content)
        self._file, self._content = file, content
        self._tiff = tifffile.TiffFile(file)
        self._series = full_resolution(self._tiff)
        self.page = self._series.keyframe
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._kept_bytes = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored."""
        return self.page.imagelength, self.page.imagewidth

    @property
    def pages(self) -> int:
        """Number of pages of the image: its channels, if there are several."""
        return len(self._series.pages)

    @property
    def orientation(self) -> int:
        """Value of the orientation tag; 1 without one."""
        tag = self.page.tags.get(ORIENTATION)
        return int(tag.value) if tag is not None else 1

    @property
    def as_stored(self) -> bool:
        """True if the stored values are those that are read: intensities or numbers of all the bits of their type."""
        import tifffile

        kinds, page = tifffile.PHOTOMETRIC, self.page
        lossy = tifffile.COMPRESSION(page.compression).name.endswith("JPEG")
        plain = (kinds.MINISBLACK, kinds.RGB, *((kinds.YCBCR,) if lossy else ()))
        whole = page.dtype is not None and page.bitspersample == 8 * page.dtype.itemsize and page.dtype.kind in "iuf"
        return self.orientation == 1 and page.imagedepth == 1 and page.photometric in plain and whole

    def read(self, box: Box) -> np.ndarray:
        """Return a part, (height, width, channels), with the values as stored.

        Raises:
            BrokenSample: if a strip or tile is missing, damaged, or too large.
        """
        parts = [self._part(number, page, box) for number, page in enumerate(self._series.pages)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()
        self._file.close()

    def _part(self, number: int, page: tifffile.TiffPage, box: Box) -> np.ndarray:
        top, left, height, width = box
        key = self.page
        planes = key.samplesperpixel if key.planarconfig == 2 else 1
        out = np.empty((height, width, key.samplesperpixel), key.dtype)
        check_segments(page)
        if key.is_final and not key.is_tiled:  # however large a strip is, its rows can be read
            self._read_rows(page, out, box, planes)
            return out
        across, down = (
            (-(-key.imagewidth // key.tilewidth), -(-key.imagelength // key.tilelength))
            if key.is_tiled
            else (1, -(-key.imagelength // key.rowsperstrip))
        )
        tall, wide = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, key.imagewidth)
        for plane in range(planes):
            for row in range(top // tall, -(-(top + height) // tall)):
                for column in range(left // wide, -(-(left + width) // wide)):
                    segment = self._segment(number, page, (plane * down + row) * across + column)
                    at = slice(None) if planes == 1 else slice(plane, plane + 1)
                    _copy(out[..., at], segment, (top, left), (row * tall, column * wide))
        return out

    def _read_rows(self, page: tifffile.TiffPage, out: np.ndarray, box: Box, planes: int) -> None:
        """Read the rows of an uncompressed image whose strips follow each other."""
        top, left, height, width = box
        length, across = self.size
        pixel = out.shape[-1] // planes * out.dtype.itemsize
        dtype = out.dtype.newbyteorder(self._tiff.byteorder)
        for plane in range(planes):
            at = slice(None) if planes == 1 else slice(plane, plane + 1)
            for row in range(height):
                start = page.dataoffsets[0] + ((plane * length + top + row) * across + left) * pixel
                values = np.frombuffer(self._bytes(start, width * pixel), dtype)
                out[row, :, at] = values.reshape(width, -1)

    def _segment(self, number: int, page: tifffile.TiffPage, index: int) -> np.ndarray:
        """Return a decoded strip or tile, (height, width, channels of it)."""
        place = (number, index)
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        key = self.page
        if math.prod(key.chunks) * key.dtype.itemsize > _LARGEST_SEGMENT:
            raise BrokenSample(
                f"its strips or tiles have more than {_LARGEST_SEGMENT >> 30} GiB each, and each is decoded whole: "
                "write it with tiles of 256 or 512 pixels"
            )
        options = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in _JPEG else {}
        length = page.databytecounts[index]
        data = self._bytes(page.dataoffsets[index], length) if length else None
        decoded, _, shape = key.decode(data, index, **options)
        if decoded is None:  # a sparse file leaves out segments without data
            decoded = np.full(shape, key.nodata, key.dtype)
        segment = decoded.reshape(decoded.shape[-3:])
        self._kept[place] = segment
        self._kept_bytes += segment.nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return segment

    def _bytes(self, start: int, length: int) -> bytes:
        file = self._tiff.filehandle
        file.seek(start)
        data = file.read(length)
        if len(data) < length:
            raise BrokenSample(f"it ends {length - len(data)} bytes too early")
        return data


def _copy(out: np.ndarray, segment: np.ndarray, corner: tuple[int, int], place: tuple[int, int]) -> None:
    """Copy the pixels that a segment and a part share.

    Args:
        corner: top and left of the part.
        place: top and left of the segment.
    """
    first = [max(a, b) for a, b in zip(corner, place, strict=True)]
    stop = [min(a + n, b + m) for a, n, b, m in zip(corner, out.shape[:2], place, segment.shape[:2], strict=True)]
    here, there = (
        [slice(a - o, b - o) for a, b, o in zip(first, stop, origin, strict=True)] for origin in (corner, place)
    )
    out[tuple(here)] = segment[tuple(there)]
