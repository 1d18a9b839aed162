"""Label maps: images whose values are class indices, never intensities.

`decode.decode` must not read them: it turns palettes into colors and scales small depths to the full range.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from swinv2_train.data.decode import MAX_PIXELS, decoding
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import check_png, orientation, sniff, unknown_format
from swinv2_train.data.pixels import check_size, from_numpy, upright

if TYPE_CHECKING:
    import tifffile

_PNG_GRAY, _PNG_PALETTE = 0, 3
_PNG_COLORS = {2: "RGB", 4: "gray with alpha", 6: "RGBA"}
_COLOR = "it is {} and a label map has one index per pixel: store palette indices or gray values"


def decode_label_map(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return the indices of a label map as they are stored: (H, W) uint8, or uint16 if it has 16 bits.

    PNG with a palette (its indices, whatever the colors) or gray, and TIFF with one channel. They are upright by their
    own orientation tag, as images are.

    Raises:
        BrokenSample: if it is a color image, of another format, damaged, or larger than `max_pixels`.
    """
    kind = sniff(data)
    if kind is None:
        raise BrokenSample(unknown_format(data))
    if kind not in ("png", "tiff"):
        raise BrokenSample(f"{kind}: a label map must be PNG or TIFF, which store every index exactly")
    with decoding(kind):
        return _png(data, max_pixels) if kind == "png" else _tiff(data, max_pixels)


def _png(data: bytes, max_pixels: int) -> Tensor:
    check_png(data)
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    check_size(height, width, max_pixels=max_pixels)
    if color not in (_PNG_GRAY, _PNG_PALETTE):
        raise BrokenSample(_COLOR.format(_PNG_COLORS.get(color, f"of color type {color}")))
    with Image.open(io.BytesIO(data)) as image:
        array = np.array(image)
    if color == _PNG_GRAY and depth < 8:
        # PIL spreads 2 and 4 bits over 0 to 255, and gives 1 bit as bool.
        array = array.astype(np.uint8) if depth == 1 else array // (255 // (2**depth - 1))
    return _oriented(array, orientation(data, "png"))


def _tiff(data: bytes, max_pixels: int) -> Tensor:
    import tifffile

    from swinv2_train.data.tiff import ORIENTATION, check_pages, check_segments

    check_pages(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > 1:
            raise BrokenSample(f"it has {len(file.pages)} pages, and a label map has one")
        page = file.pages.first
        _check_tiff(page)
        check_size(page.imagelength, page.imagewidth, max_pixels=max_pixels)
        check_segments(page)
        array = page.asarray(maxworkers=1)  # raw values: neither a palette nor a depth below 8 bits is expanded
        tag = page.tags.get(ORIENTATION)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype not in (np.uint8, np.uint16):
        raise BrokenSample(f"its samples are {array.dtype}: convert to 8 or 16 bit unsigned integers")
    return _oriented(array.reshape(page.imagelength, page.imagewidth), int(tag.value) if tag is not None else 1)


def _check_tiff(page: tifffile.TiffPage) -> None:
    import tifffile

    kinds = tifffile.PHOTOMETRIC
    photometric = kinds(page.photometric)
    if page.samplesperpixel > 1 or photometric not in (kinds.MINISBLACK, kinds.MINISWHITE, kinds.PALETTE):
        raise BrokenSample(_COLOR.format(f"{photometric.name} with {page.samplesperpixel} values per pixel"))
    if photometric == kinds.MINISWHITE:
        raise BrokenSample("its values are inverted (MINISWHITE): convert to MINISBLACK or a palette")
    if tifffile.COMPRESSION(page.compression).name.endswith("JPEG"):
        raise BrokenSample("its compression is lossy (JPEG), which changes indices: compress it without loss")


def _oriented(array: np.ndarray, turned: int) -> Tensor:
    return upright(from_numpy(np.ascontiguousarray(array)[..., None]), turned)[0].contiguous()
