"""Parts of an image file of any size: large TIFFs are read as needed, all other files are decoded entirely."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from swinv2_train.data.decode import DecodeOptions, adapted, decoding, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geo_tags import GeoTags
from swinv2_train.data.image_header import sniff
from swinv2_train.data.pixels import Pixels, from_values
from swinv2_train.data.tiff import nodata_of
from swinv2_train.data.tiff_region import TiffRegions
from swinv2_train.data.unit_values import missing_of
from swinv2_train.data.value_range import Nodata

_UNASSOCIATED, _ASSOCIATED = 2, 1  # kinds of alpha in the tag ExtraSamples


@dataclass(frozen=True)
class Region:
    """A part of an image."""

    image: Tensor
    """(C, height, width) as `decode.decode` returns it."""
    missing: np.ndarray | None
    """(height, width) bool: True for pixels of which no channel has data; None if the file has no such value."""


class ImageRegions(Protocol):
    """An open image file."""

    is_tiff: bool
    geo: GeoTags | None
    """Georeference; None without one."""
    has_nodata: bool
    """True if a stored value, or NaN, means that a pixel has no data."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        ...

    def read(self, top: int, left: int, height: int, width: int) -> Region:
        """Return a part that lies in the image. Raises BrokenSample."""
        ...


@contextmanager
def open_regions(path: Path, channels: int, options: DecodeOptions) -> Iterator[ImageRegions]:
    """Open an image file.

    A TIFF is read in parts if its stored values are its intensities; `options.max_pixels` then does not apply. Others
    (palettes, subsampled colors, few bits, another orientation) are decoded entirely, as all other formats.

    Args:
        channels: channels of the model.

    Raises:
        BrokenSample: if it cannot be read or decoded.
    """
    with ExitStack() as stack:
        yield _opened(path, channels, options, stack)


def _opened(path: Path, channels: int, options: DecodeOptions, stack: ExitStack) -> ImageRegions:
    try:
        file = stack.enter_context(path.open("rb"))
        if sniff(file.read(64)) != "tiff":
            return _Whole.of(path.read_bytes(), channels, options)
        content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise BrokenSample(f"it cannot be read ({error.strerror})") from error
    file.seek(0)
    with decoding("tiff"):
        tiff = TiffRegions(file, content)
        stack.callback(tiff.close)
        geo = GeoTags.of(tiff.page) if tiff.orientation == 1 else None
        if tiff.as_stored:
            return _Streamed(tiff, channels, options, geo)
    return _Whole.of(content[:], channels, options, geo, is_tiff=True)


class _Streamed:
    is_tiff = True

    def __init__(self, tiff: TiffRegions, channels: int, options: DecodeOptions, geo: GeoTags | None) -> None:
        self._tiff, self._channels, self._options, self.geo = tiff, channels, options, geo
        extra = tuple(int(sample) for sample in tiff.page.extrasamples)
        self._alpha = extra[-1:] in ((_ASSOCIATED,), (_UNASSOCIATED,)) and tiff.page.samplesperpixel > 1
        self._premultiplied = extra[-1:] == (_ASSOCIATED,)
        self._nodata = nodata_of(tiff.page)
        set_nodata = options.values is not None and options.values.nodata is not None
        self.has_nodata = self._nodata is not None or set_nodata or tiff.page.dtype.kind == "f"

    @property
    def size(self) -> tuple[int, int]:
        return self._tiff.size

    def read(self, top: int, left: int, height: int, width: int) -> Region:
        with decoding("tiff"):
            pixels = from_values(self._tiff.read((top, left, height, width)), self._nodata)
        pixels = Pixels(pixels.image, self._alpha, self._premultiplied, pixels.stored, self._nodata)
        return Region(adapted(pixels, self._channels, self._options, part=True), _missing(pixels, self._options))


@dataclass
class _Whole:
    image: Tensor
    missing: np.ndarray | None
    is_tiff: bool
    geo: GeoTags | None

    @classmethod
    def of(
        cls, data: bytes, channels: int, options: DecodeOptions, geo: GeoTags | None = None, *, is_tiff: bool = False
    ) -> _Whole:
        pixels = read_pixels(data, options.max_pixels)
        return cls(adapted(pixels, channels, options), _missing(pixels, options), is_tiff, geo)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def has_nodata(self) -> bool:
        return self.missing is not None

    def read(self, top: int, left: int, height: int, width: int) -> Region:
        rows, columns = slice(top, top + height), slice(left, left + width)
        missing = None if self.missing is None else self.missing[rows, columns]
        return Region(self.image[:, rows, columns], missing)


def _missing(pixels: Pixels, options: DecodeOptions) -> np.ndarray | None:
    """Return (H, W) bool: True where no channel has data; None if no value means that."""
    nodata: Nodata = options.values.nodata if options.values is not None else None
    if pixels.nodata is None and nodata is None and not pixels.image.is_floating_point():
        return None
    stored = pixels if pixels.raw is None else Pixels(pixels.raw, nodata=pixels.nodata)
    planes = stored.image[:-1] if pixels.alpha and len(stored.image) > 1 else stored.image
    return missing_of(stored, planes.numpy(), nodata).all(axis=0)
