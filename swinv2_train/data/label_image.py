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
from swinv2_train.data.image_header import check_png, orientation, sniff
from swinv2_train.data.pixels import check_size, from_numpy, upright

if TYPE_CHECKING:
    import tifffile

Image.MAX_IMAGE_PIXELS = None  # `data.max_pixels` is checked instead, as in pil_image
_PNG_GRAY, _PNG_PALETTE, _PNG_GRAY_ALPHA = 0, 3, 4
_PNG_COLORS = {2: "RGB", 4: "gray with alpha", 6: "RGBA"}
_COLOR = (
    "it is {} and a label map has one index per pixel: store palette indices or gray values, or pack it with "
    "--colors TABLE"
)
_NO_COLOR = "it is {}, and --colors is for palettes and RGB of 8 bits: store the colors, or use a table of values"


def decode_label_map(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return the indices of a label map as they are stored: (H, W) uint8, or uint16 if it has 16 bits.

    PNG with a palette (its indices, whatever the colors) or gray, and TIFF with one channel. They are upright by their
    own orientation tag, as images are.

    Raises:
        BrokenSample: if it is a color image, of another format, damaged, or larger than `max_pixels`.
    """
    return _decoded(data, max_pixels, colors=False)[0].contiguous()


def decode_color_map(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return the colors of a label map, (3, H, W) uint8: PNG with a palette or RGB, and RGB TIFF; upright.

    Raises:
        BrokenSample: if it has no colors, or pixels that are not opaque, and for the reasons of `decode_label_map`.
    """
    return _decoded(data, max_pixels, colors=True)


def _decoded(data: bytes, max_pixels: int, *, colors: bool) -> Tensor:
    """Return (1 or 3, H, W)."""
    kind = sniff(data)
    if kind is None:
        raise BrokenSample("it is neither PNG nor TIFF, the formats of label maps" if data else "it is empty")
    if kind not in ("png", "tiff"):
        raise BrokenSample(f"{kind}: a label map must be PNG or TIFF, which store every index exactly")
    with decoding(kind):
        return _png(data, max_pixels, colors) if kind == "png" else _tiff(data, max_pixels, colors)


def _png(data: bytes, max_pixels: int, colors: bool) -> Tensor:
    check_png(data)
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    check_size(height, width, max_pixels=max_pixels)
    if colors:
        return _oriented(_png_colors(data, depth, color), orientation(data, "png"))
    if color not in (_PNG_GRAY, _PNG_PALETTE):
        raise BrokenSample(_COLOR.format(_PNG_COLORS.get(color, f"of color type {color}")))
    with Image.open(io.BytesIO(data)) as image:
        array = np.array(image)
    if color == _PNG_GRAY and depth < 8:
        # PIL spreads 2 and 4 bits over 0 to 255, and gives 1 bit as bool.
        array = array.astype(np.uint8) if depth == 1 else array // (255 // (2**depth - 1))
    return _oriented(array, orientation(data, "png"))


def _png_colors(data: bytes, depth: int, color: int) -> np.ndarray:
    """Return (H, W, 3) uint8."""
    import imagecodecs

    if color in (_PNG_GRAY, _PNG_GRAY_ALPHA) or depth > 8:
        raise BrokenSample(_NO_COLOR.format(f"gray or has {depth} bits per channel"))
    array = imagecodecs.png_decode(data)  # palettes as their colors
    if array.shape[-1] == 4 and (array[..., 3] != 255).any():
        raise BrokenSample("it is transparent in parts, so their color is not defined: remove the alpha channel")
    return array[..., :3]


def _tiff(data: bytes, max_pixels: int, colors: bool) -> Tensor:
    import tifffile

    from swinv2_train.data.tiff import ORIENTATION, check_pages, check_segments

    check_pages(data)
    with io.BytesIO(data) as stream, tifffile.TiffFile(stream) as file:
        pages = [page for page in file.pages if not page.is_reduced] or [file.pages.first]  # without overviews
        if len(pages) > 1:
            raise BrokenSample(f"it has {len(pages)} pages, and a label map has one")
        page = pages[0]
        check_tiff(page, colors=colors)
        check_size(page.imagelength, page.imagewidth, max_pixels=max_pixels)
        check_segments(page)
        array = page.asarray(maxworkers=1)  # raw values: neither a palette nor a depth below 8 bits is expanded
        tag = page.tags.get(ORIENTATION)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if colors and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        array = np.moveaxis(array, 0, -1)
    return _oriented(array.reshape(page.imagelength, page.imagewidth, -1), int(tag.value) if tag is not None else 1)


def check_tiff(page: tifffile.TiffPage, *, colors: bool) -> None:
    """Check that the values of a TIFF can be the indices, or with `colors` the colors, of a label map.

    Raises:
        BrokenSample: if they cannot.
    """
    import tifffile

    kinds = tifffile.PHOTOMETRIC
    photometric = kinds(page.photometric)
    if colors and (photometric != kinds.RGB or page.samplesperpixel != 3 or page.dtype != np.uint8):
        kind = f"{photometric.name} with {page.samplesperpixel} values per pixel of type {page.dtype}"
        raise BrokenSample(_NO_COLOR.format(kind))
    if not colors and (
        page.samplesperpixel > 1 or photometric not in (kinds.MINISBLACK, kinds.MINISWHITE, kinds.PALETTE)
    ):
        raise BrokenSample(_COLOR.format(f"{photometric.name} with {page.samplesperpixel} values per pixel"))
    if photometric == kinds.MINISWHITE:
        raise BrokenSample("its values are inverted (MINISWHITE): convert to MINISBLACK or a palette")
    if tifffile.COMPRESSION(page.compression).name.endswith("JPEG"):
        raise BrokenSample("its compression is lossy (JPEG), which changes indices: compress it without loss")
    if page.dtype not in (bool, np.uint8, np.uint16):
        raise BrokenSample(f"its samples are {page.dtype}: convert to 8 or 16 bit unsigned integers")


def _oriented(array: np.ndarray, turned: int) -> Tensor:
    array = array if array.ndim == 3 else array[..., None]
    return upright(from_numpy(np.ascontiguousarray(array)), turned)
