"""TIFF images: any number of channels, of any type of real numbers, interleaved, planar, or one page per channel."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.pixels import Pixels, check_size, from_numpy, from_values, upright

if TYPE_CHECKING:
    import tifffile

ORIENTATION = 274
"""Number of the tag."""
_NODATA = 42113  # GDAL_NODATA: a number as text
_UNASSOCIATED, _ASSOCIATED = 2, 1
_OWN_COLORS = ("JPEG", "OJPEG", "WEBP", "JPEG2000", "APERIO", "JPEGXR", "JPEGXL", "JETRAW")
"""Compressions whose decoder converts YCbCr to RGB itself (beginnings of tifffile's names)."""

_OTHER_COLORS = ("CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV")
"""Photometric interpretations whose samples are neither intensities nor converted here."""


def read_tiff(data: bytes, max_pixels: int) -> Pixels:
    """Decode the first full-resolution image of a TIFF.

    Unsigned values up to 16 bits are scaled to the full range of 8 or 16 bits; `Pixels.raw` has them as stored. Others
    stay as they are.

    Pages of the same shape are channels. Thumbnails (reduced-resolution pages) and masks are skipped. Palettes, CMYK,
    and YCbCr become RGB.

    Raises BrokenSample for anything without such a meaning; tifffile may raise anything on damaged bytes.
    """
    import tifffile

    from swinv2_train.data.pil_image import read_with_pil

    check_pages(data)
    kinds = tifffile.PHOTOMETRIC
    # Closing the stream frees the bytes: tifffile's objects refer to each other, and wait for the garbage collector.
    with io.BytesIO(data) as stream, tifffile.TiffFile(stream) as file:
        series = full_resolution(file)
        page = series.keyframe
        photometric = kinds(page.photometric)
        own_colors = tifffile.COMPRESSION(page.compression).name.startswith(_OWN_COLORS)
        if photometric in (kinds.PALETTE, kinds.SEPARATED) or (photometric == kinds.YCBCR and not own_colors):
            if photometric == kinds.YCBCR and page.bitspersample != 8:
                raise BrokenSample(f"YCbCr of {page.bitspersample} bits is not read: convert to RGB")
            return read_with_pil(data, max_pixels, page.index)
        if photometric.name in _OTHER_COLORS:
            raise BrokenSample(f"photometric interpretation {photometric.name} is not read: convert to gray or RGB")
        check_size(*_sizes(series.shape, series.axes), max_pixels=max_pixels)
        for each in series.pages:
            check_segments(each)
        array = series.asarray(maxworkers=1)
        extra = tuple(int(sample) for sample in page.extrasamples)
        tag = page.tags.get(ORIENTATION)
        orientation = int(tag.value) if tag is not None else 1
        white_is_zero, nodata = photometric == kinds.MINISWHITE, nodata_of(page)
        if array.dtype not in (bool, np.uint8, np.uint16):
            if white_is_zero:
                raise BrokenSample(f"its samples are {array.dtype} and inverted (MINISWHITE): convert to MINISBLACK")
            pixels = from_values(_channels_last(array, series.axes), nodata)
            return replace(pixels, image=upright(pixels.image, orientation))
        stored = array
        array = _full_range(stored, page, white_is_zero=white_is_zero)
        raw = None if array is stored else from_numpy(_channels_last(stored.astype(array.dtype), series.axes))
        array = _channels_last(array, series.axes)
    alpha = extra[-1:] in ((_ASSOCIATED,), (_UNASSOCIATED,)) and array.shape[-1] > 1
    return Pixels(
        upright(from_numpy(array), orientation),
        alpha,
        premultiplied=extra[-1:] == (_ASSOCIATED,),
        nodata=nodata,
        raw=None if raw is None else upright(raw, orientation),
        depth=0 if raw is None else _depth(page),
        inverted=white_is_zero,
    )


def nodata_of(page: tifffile.TiffPage) -> float | None:
    """Return the value that a GeoTIFF gives to pixels without data; None without one."""
    tag = page.tags.get(_NODATA)
    try:
        return float(str(tag.value).strip("\0 ")) if tag is not None else None
    except ValueError:
        return None


def check_pages(data: bytes) -> None:
    """Follow the chain of pages: tifffile would walk in a circle for a long time.

    Raises BrokenSample if a page comes twice. A chain that leaves the file simply ends.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count, entry, offset, first = ("Q", 20, "Q", 8) if big else ("H", 12, "I", 4)
    seen: set[int] = set()
    place = first
    try:
        while position := struct.unpack_from(order + offset, data, place)[0]:
            if position in seen:
                raise BrokenSample("its pages form a circle")
            seen.add(position)
            (entries,) = struct.unpack_from(order + count, data, position)
            place = position + struct.calcsize(order + count) + entries * entry
    except struct.error:
        pass


def check_segments(page: tifffile.TiffPage | tifffile.TiffFrame | None) -> None:
    """See that a page has all its strips or tiles: tifffile would fill missing ones with zeros."""
    if page is not None and len(page.dataoffsets) < (expected := math.prod(page.chunked)):
        raise BrokenSample(f"page {page.index} has {len(page.dataoffsets)} of {expected} strips or tiles")


def full_resolution(file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """Return the first series that is neither a thumbnail nor a mask; a single page is used whatever its type."""
    for series in file.series:
        page = series.keyframe
        if not (page.is_reduced or page.is_mask):
            return series
    first = file.series[0].keyframe
    if first.subifds:
        raise BrokenSample(
            "its pages are thumbnails of an image in a subdirectory (SubIFD): convert it to a plain TIFF"
        )
    return max(file.series, key=lambda series: series.size)


def _sizes(shape: tuple[int, ...], axes: str) -> tuple[int, int, int]:
    """Height, width, and number of channels or pages."""
    if "Y" not in axes or "X" not in axes or len(shape) not in (2, 3):
        raise BrokenSample(f"shape {shape} with axes {axes} is not an image with channels")
    sides = dict(zip(axes, shape, strict=True))
    channels = [size for axis, size in zip(axes, shape, strict=True) if axis not in "YX"]
    return sides["Y"], sides["X"], channels[0] if channels else 1


def _full_range(array: np.ndarray, page: tifffile.TiffPage, *, white_is_zero: bool) -> np.ndarray:
    """Return samples of any depth up to 16 bits as uint8 or uint16 over the full range of that type, black as zero."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    largest, full = (1 << _depth(page)) - 1, np.iinfo(array.dtype).max
    if white_is_zero:
        array = largest - array
    if largest == full:
        return array
    return ((array.astype(np.uint32) * full + largest // 2) // largest).astype(array.dtype)


def _depth(page: tifffile.TiffPage) -> int:
    """Return the bits of a stored sample. Raises BrokenSample if channels differ."""
    depths = page.bitspersample if isinstance(page.bitspersample, tuple) else (page.bitspersample,)
    if len(set(depths)) > 1:
        raise BrokenSample(f"its channels have different depths ({', '.join(map(str, depths))} bits): convert it")
    return int(depths[0])


def _channels_last(array: np.ndarray, axes: str) -> np.ndarray:
    if array.ndim == 2:
        return array[..., None]
    (channel,) = (i for i, axis in enumerate(axes) if axis not in "YX")
    return np.moveaxis(array, channel, -1)
