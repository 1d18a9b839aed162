"""Very large images and their label maps, of which parts ("tiles") are packed as samples of their own.

A TIFF is read part by part, whatever its size. Other formats, and TIFFs whose stored values need a conversion, have to
be decoded whole: `max_pixels` bounds them, and the last one is kept, because its tiles follow each other.
"""

from __future__ import annotations

import io
import mmap
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from swinv2_train.data.array_image import ARRAY_KINDS
from swinv2_train.data.decode import decoding, read_pixels
from swinv2_train.data.encode import encode, npy_bytes, pixels_tiff, tiff_bytes
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import header_size, orientation, sniff, unknown_format
from swinv2_train.data.label_image import check_tiff, decode_color_map, decode_label_map
from swinv2_train.data.label_smoothing import is_smooth_scene
from swinv2_train.data.pixels import Pixels, check_size, stored_box, upright
from swinv2_train.data.tiff import nodata_of
from swinv2_train.data.tiff_region import Box, TiffRegions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swinv2_train.data.label_rules import LabelRules

_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width
Content = Path | bytes
"""A file, or the bytes of a member of a shard."""


class Scene:
    """An open image that gives tiles as encoded files."""

    def __init__(self, content: Content, max_pixels: int, quality: int) -> None:
        """Open an image, or decode it if it cannot be read in parts.

        Args:
            max_pixels: limit of images that are decoded whole.
            quality: JPEG quality of the tiles of a JPEG; those of all other formats keep every value.

        Raises:
            OSError, BrokenSample: if it cannot be read.
        """
        self._max_pixels, self._quality = max_pixels, quality
        self._regions: TiffRegions | None = None
        with mapped(content) as data:
            self._kind = sniff(data)
            if self._kind == "tiff":
                self._regions = _streamed(content, data)
            self._pixels = None if self._regions is not None else read_pixels(bytes(data), max_pixels)

    def tile(self, box: Box) -> bytes:
        """Return an encoded tile: JPEG of a JPEG, TIFF with the values as stored of a TIFF, npy of an array, else PNG.

        Raises:
            BrokenSample: if its part of the image is damaged.
        """
        if self._regions is None:
            assert self._pixels is not None
            return self._cut(self._pixels, box)
        with decoding("tiff"):
            array = self._regions.read(box)
            check_size(*array.shape, max_pixels=self._max_pixels)
            return tiff_bytes(array, self._regions.page, nodata_of(self._regions.page))

    def _cut(self, pixels: Pixels, box: Box) -> bytes:
        top, left, height, width = box
        part = pixels.image[:, top : top + height, left : left + width].contiguous()
        if self._kind in ARRAY_KINDS:
            return npy_bytes(part, pixels.stored)
        if self._kind == "jpeg":
            return encode(part, self._quality)
        if self._kind == "tiff":
            raw = None if pixels.raw is None else pixels.raw[:, top : top + height, left : left + width]
            return pixels_tiff(replace(pixels, image=part, raw=raw))
        return encode(part, None, alpha=pixels.alpha)

    def close(self) -> None:
        """Close the file."""
        if self._regions is not None:
            self._regions.close()


class LabelScene:
    """An open label map that gives tiles of class numbers."""

    def __init__(
        self, content: Content, rules: LabelRules, max_pixels: int, image: tuple[int, int], turned: int
    ) -> None:
        """Open a label map; see `Scene`.

        Args:
            image: height and width of the upright image, which the label map must have.
            turned: orientation of the image, which a label map of its stored pixels follows.

        Raises:
            OSError, BrokenSample: if it cannot be read, or has another size.
        """
        self._rules = rules
        self._regions: TiffRegions | None = None
        self._stored: np.ndarray | None = None
        try:
            self._size = self._open(content, max_pixels)
            self._turned = turn_of_labels(self._size, image, turned)
        except BrokenSample:
            self.close()
            raise

    def _open(self, content: Content, max_pixels: int) -> tuple[int, int]:
        """Open the parts of a TIFF, or decode a label map; return height and width."""
        with mapped(content) as data:
            if sniff(data) == "tiff":
                self._regions = _streamed(content, data)
            if self._regions is not None and self._regions.pages == 1:
                with decoding("tiff"):
                    check_tiff(self._regions.page, colors=self._rules.colors)
                return self._regions.size
            self._stored = stored_labels(bytes(data), self._rules, max_pixels)
            return self._stored.shape[0], self._stored.shape[1]

    def tile(self, box: Box) -> np.ndarray:
        """Return (height, width) class numbers as they are packed. Raises BrokenSample."""
        labels = self._read(stored_box(box, self._size, self._turned))
        return upright(torch.from_numpy(labels)[None], self._turned)[0].numpy()

    @cached_property
    def smooth(self) -> bool:
        """True if the label map, not only a tile of it, looks as if it was resized with interpolation."""
        return is_smooth_scene(self._size, self._read, self._rules.packed_ignore)

    def _read(self, place: Box) -> np.ndarray:
        """Return class numbers of a part in the orientation of the file."""
        if self._stored is not None:
            top, left, height, width = place
            return self._rules.packed(self._stored[top : top + height, left : left + width])
        assert self._regions is not None
        with decoding("tiff"):
            stored = self._regions.read(place)
        return self._rules.packed(stored if self._rules.colors else stored[..., 0])

    def close(self) -> None:
        """Close the file."""
        if self._regions is not None:
            self._regions.close()


def stored_labels(data: bytes, rules: LabelRules, max_pixels: int) -> np.ndarray:
    """Decode a label map: (H, W) values, or (H, W, 3) colors if the rules are for colors. Raises BrokenSample."""
    if rules.colors:
        return decode_color_map(data, max_pixels).permute(1, 2, 0).numpy()
    return decode_label_map(data, max_pixels).numpy()


def turn_of_labels(labels: tuple[int, int], image: tuple[int, int], turned: int) -> int:
    """Return the orientation that turns a label map onto its upright image: that of the image if its sides fit then.

    Args:
        labels, image: height and width.
        turned: orientation of the image.

    Raises:
        BrokenSample: if the label map has another size.
    """
    if labels == image:
        return 1
    if labels == image[::-1] and turned in _TURNED:
        return turned
    raise BrokenSample(
        f"it is {labels[1]} x {labels[0]}, and the image is {image[1]} x {image[0]}: both must have the same size"
    )


def scene_orientation(content: Content) -> int:
    """Return the orientation by which the pixels of an image are turned upright; 1 without one. Raises OSError."""
    with mapped(content) as data:
        kind = sniff(data)
        if kind == "tiff":
            with decoding(kind), opened(content) as file:
                regions = TiffRegions(file, data)
                regions.close()
                return regions.orientation
        return orientation(data, kind) if kind is not None and header_size(data, kind) is not None else 1


def scene_size(content: Content, max_pixels: int) -> tuple[int, int]:
    """Return height and width of an upright image, from its header if the format allows.

    Raises:
        OSError, BrokenSample: if it cannot be read.
    """
    with mapped(content) as data:
        kind = sniff(data)
        if kind is None:
            raise BrokenSample(unknown_format(bytes(data[:4096])))
        if kind == "tiff":
            with decoding(kind), opened(content) as file:
                regions = TiffRegions(file, data)
                height, width = regions.size
                turned = regions.orientation
                regions.close()
        elif (found := header_size(data, kind)) is not None:
            (height, width), turned = found, orientation(data, kind)
        else:
            (height, width), turned = read_pixels(bytes(data), max_pixels).image.shape[1:], 1
    return (width, height) if turned in _TURNED else (height, width)


def opened(content: Content) -> io.BufferedIOBase:
    """Open a file, or bytes as one."""
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def mapped(content: Content) -> AbstractContextManager[bytes]:
    """Return the bytes of a file without reading it, as a memory map, which has slices like bytes."""
    return nullcontext(content) if isinstance(content, bytes) else _map(content)


@contextmanager
def _map(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if not file.seek(0, 2):
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content  # type: ignore[misc]


def _streamed(content: Content, data: bytes) -> TiffRegions | None:
    """Open a TIFF in order to read parts of it; None if its values need a conversion as a whole."""
    with ExitStack() as stack:
        file = stack.enter_context(opened(content))
        with decoding("tiff"):
            regions = TiffRegions(file, data)
        if regions.as_stored:
            stack.pop_all()  # it closes the file
            return regions
        regions.close()
    return None
