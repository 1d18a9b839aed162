"""Label maps give the indices that are stored, in every form that programs write, and nothing else is read as one."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from swinv2_train.data.decode import decode
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.label_image import decode_label_map
from tests.data.samples import encoded, pixels


def indices(highest: int, dtype: type = np.uint8) -> np.ndarray:
    found = np.random.default_rng(highest).integers(0, highest + 1, (13, 21)).astype(dtype)
    found[0, 0], found[-1, -1] = 0, highest
    return found


def png(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    if mode == "P":
        picture.putpalette([value for n in range(256) for value in (255 - n, n * 7 % 256, 128)])
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def gray_png(array: np.ndarray, depth: int) -> bytes:
    """A gray PNG of a depth that PIL does not write: its palette PNG under another color type."""
    data = bytearray(png(array, "P", bits=depth))
    data[25] = 0
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    place = data.index(b"PLTE")
    size = int.from_bytes(data[place - 4 : place], "big")
    del data[place - 4 : place + 8 + size]
    return bytes(data)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "metadata": None, **options})
    return buffer.getvalue()


COLORS = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
VOC = (*range(21), 255)
"""Classes of Pascal VOC, and the outlines of objects, which have none."""


def voc_palette() -> list[int]:
    """The colors of Pascal VOC, which labelme and imgviz write as well: the bits of an index, dealt to r, g, and b."""
    return [sum((n >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for n in range(256) for c in range(3)]


def voc_png(array: np.ndarray) -> bytes:
    picture, buffer = Image.fromarray(array), io.BytesIO()
    picture.putpalette(voc_palette())
    picture.save(buffer, "PNG")
    return buffer.getvalue()


CASES = {
    "palette of VOC": (np.array(VOC, np.uint8)[indices(21)], voc_png),
    **{f"palette, {bits} bits": (indices(2**bits - 1), lambda a, b=bits: png(a, "P", bits=b)) for bits in (1, 2, 4, 8)},
    **{f"gray, {bits} bits": (indices(2**bits - 1), lambda a, b=bits: gray_png(a, b)) for bits in (1, 2, 4)},
    "gray, 8 bits": (indices(255), png),
    "gray, 16 bits": (indices(65535, np.uint16), png),
    "palette with transparency": (indices(5), lambda a: png(a, "P", transparency=bytes([0, 255, 7]))),
    "gray with a transparent value": (indices(255), lambda a: png(a, transparency=3)),
    "1 bit by PIL": (indices(1), lambda a: encoded(a[..., None] * 255, "PNG", mode="1")),
    "turned": (indices(9), lambda a: png(np.rot90(a), exif=exif(6))),
    "tiff, 8 bits": (indices(255), tiff),
    "tiff, 16 bits": (indices(65535, np.uint16), lambda a: tiff(a, compression="zlib", byteorder=">")),
    "tiff, tiles and predictor": (indices(255), lambda a: tiff(a, tile=(16, 16), compression="lzw", predictor=True)),
    "tiff, 1 bit": (indices(1), lambda a: tiff(a.astype(bool))),
    "tiff, palette": (indices(255), lambda a: tiff(a, photometric="palette", colormap=COLORS)),
    "tiff, turned": (indices(9), lambda a: tiff(np.rot90(a).copy(), extratags=[(274, "H", 1, 6, True)])),
}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize("case", CASES)
def test_the_stored_indices_are_read(case: str) -> None:
    array, write = CASES[case]
    found = decode_label_map(write(array))
    assert found.numpy().dtype == array.dtype
    assert found.is_contiguous()
    assert (found.numpy() == array).all()


def test_images_are_decoded_to_colors_instead() -> None:
    data = png(indices(255), "P")
    assert decode(data).shape[0] == 3
    assert decode(gray_png(indices(15), 4)).max() == 255


RGB = pixels(0, 13, 21)
REFUSED = {
    "RGB": (png(RGB), r"^png: it is RGB and a label map has one index per pixel: store palette indices or gray"),
    "RGBA": (png(np.dstack([RGB, RGB[..., :1]])), "it is RGBA"),
    "16 bit RGB": (imagecodecs.png_encode(RGB.astype(np.uint16)), "it is RGB"),
    "gray with alpha": (png(np.dstack([RGB[..., 0], RGB[..., 0]])), "it is gray with alpha"),
    "tiff RGB": (tiff(RGB, photometric="rgb"), r"^tiff: it is RGB with 3 values per pixel"),
    "two channels": (tiff(RGB[..., :2], planarconfig="contig"), "it is MINISBLACK with 2 values per pixel"),
    "inverted": (tiff(RGB[..., 0], photometric="miniswhite"), r"inverted \(MINISWHITE\)"),
    "lossy": (tiff(np.pad(RGB[..., 0], 8), compression="jpeg"), "lossy"),
    "pages": (tiff(np.stack([RGB[..., 0]] * 3)), "it has 3 pages, and a label map has one"),
    "int16": (tiff(RGB[..., 0].astype(np.int16)), "its samples are int16: convert to 8 or 16 bit unsigned"),
    "jpeg": (encoded(RGB[..., :1]), "^jpeg: a label map must be PNG or TIFF"),
    "nothing": (b"", "it is empty"),
    "text": (b"12 classes", "it is neither PNG nor TIFF"),
    "cut": (png(indices(255))[:60], "png: it ends"),
    "flipped bit": (png(indices(255)).replace(b"IDATx", b"IDATy"), "png: the checksum of a chunk IDAT is wrong"),
    "cut tiff": (tiff(indices(255))[:-50], "^tiff: "),
    "only a head": (b"\x89PNG\r\n\x1a\n", "^png: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_a_label_map_is_refused(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(BrokenSample, match=message):
        decode_label_map(data)


def test_large_label_maps_are_refused_before_they_are_decoded() -> None:
    for data in (png(indices(255)), tiff(indices(255))):
        assert decode_label_map(data, 13 * 21).shape == (13, 21)
        with pytest.raises(BrokenSample, match=r"21 x 13 is above the limit of 272 pixels"):
            decode_label_map(data, 13 * 21 - 1)


def test_damage_of_any_kind_breaks_the_sample_or_changes_values_alone() -> None:
    rng = np.random.default_rng(0)
    for data in (png(indices(255), "P"), tiff(indices(255), compression="zlib"), tiff(indices(9), tile=(16, 16))):
        for _ in range(100):
            damaged = bytearray(data)
            for place in rng.integers(8, len(data), rng.integers(1, 4)):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(BrokenSample):
                assert decode_label_map(bytes(damaged)).ndim == 2
