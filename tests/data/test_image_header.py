from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from swinv2_train.data.decode import DecodeOptions, decode
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import header_size, orientation, sniff
from tests.data.samples import encoded, pixels

PHOTO = pixels(1)  # 24 x 32
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


def exif(value: int, kind: int = 3, order: str = "<") -> bytes:
    """An EXIF block with one entry."""
    field = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I", 7: "4s"}[kind], value if kind != 7 else bytes(4))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1)
    return head + struct.pack(order + "HHI", 0x112, kind, 1) + field + bytes(4)


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    data = encoded(PHOTO)
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return data[:2] + extra + data[2:]


def png_with(*chunks: tuple[bytes, bytes], before: bytes = b"IDAT") -> bytes:
    data = encoded(PHOTO, "PNG")
    extra = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    place = data.index(before) - 4
    return data[:place] + extra + data[place:]


ADOBE_XMP, EXIF = b"http://ns.adobe.com/xap/1.0/\0" + XMP, b"Exif\0\0"


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (jpeg_with((0xE1, ADOBE_XMP), (0xE1, EXIF + exif(6))), 6),
        (jpeg_with((0xE1, EXIF + exif(6)), (0xE1, ADOBE_XMP)), 6),
        (jpeg_with((0xED, b"Photoshop 3.0\0" + bytes(9)), (0xE1, ADOBE_XMP), (0xE1, EXIF + exif(8, order=">"))), 8),
        (jpeg_with((0xE1, EXIF + exif(5, kind=4))), 5),
        (jpeg_with((0xE1, ADOBE_XMP)), 1),
        (jpeg_with((0xE1, EXIF + exif(6, kind=7))), 1),
        (jpeg_with((0xE1, EXIF + exif(9))), 1),
        (jpeg_with((0xE1, EXIF + exif(6)[:16])), 1),
        (jpeg_with((0xE1, EXIF + b"II*\0\xff\xff\xff\xff")), 1),
        (jpeg_with((0xE1, EXIF + b"junk"), (0xE1, EXIF + exif(3))), 3),
        (png_with((b"eXIf", exif(6))), 6),
        (png_with((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), (b"eXIf", exif(6, order=">"))), 6),
        (png_with((b"eXIf", exif(6)), before=b"IEND"), 6),
        (encoded(PHOTO, "WEBP", lossless=True, exif=exif(6), xmp=XMP), 6),
        (encoded(PHOTO, "WEBP", lossless=True), 1),
    ],
)
def test_orientation_is_that_of_the_exif_block_wherever_it_is(data: bytes, value: int) -> None:
    kind = sniff(data)
    assert kind is not None
    assert orientation(data, kind) == value
    expected = {1: PHOTO, 3: PHOTO[::-1, ::-1], 6: np.rot90(PHOTO, -1), 8: np.rot90(PHOTO), 5: PHOTO.swapaxes(0, 1)}
    found = decode(data).permute(1, 2, 0).numpy().astype(int)
    assert found.shape == expected[value].shape
    assert np.abs(found - expected[value]).mean() <= (12 if kind == "jpeg" else 0)


def test_sizes_in_headers_are_those_of_pil() -> None:
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {"quality": 80}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": True, "exif": exif(6)}),
    ):
        data = encoded(PHOTO, kind, **options)
        assert header_size(data, kind.lower()) == (24, 32)
        for end in range(0, 40, 3):
            header_size(data[:end], kind.lower())  # no exception
    assert header_size(jpeg_with((0xE1, b"\xff\xc0\x00\x11\x08\x10\x00\x10\x00")), "jpeg") == (24, 32)


def patched(kind: str, height: int, width: int) -> bytes:
    """An image of 24 x 32 whose header has another size."""
    data = bytearray(encoded(PHOTO, kind, **({"lossless": True, "exif": exif(1)} if kind == "WEBP" else {})))
    if kind == "JPEG":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif kind == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif kind == "WEBP":
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif kind == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif kind == "JPEG2000":
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, height, width)
        place = data.index(b"\xff\x51") + 6
        struct.pack_into(">IIIIIIII", data, place, width, height, 0, 0, width, height, 0, 0)
    else:
        place = {"AVIF": data.index(b"ispe") + 8}[kind]
        struct.pack_into(">II", data, place, width, height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF"])
def test_an_enormous_size_in_a_header_is_refused_before_memory_is_allocated(kind: str) -> None:
    with pytest.raises(BrokenSample) as caught:
        decode(patched(kind, 65500, 65500))
    if kind != "AVIF":  # its decoder has a limit, too, and compares the size with that of the coded image
        assert "65500 x 65500 is above the limit of 200,000,000 pixels (data.max_pixels, --max-pixels)" in str(
            caught.value
        )


def test_tiff_sizes_are_limited_with_their_channels() -> None:
    image = bytearray(encoded(PHOTO, "TIFF"))
    for tag in (256, 257):
        place = image.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in image else None
        place = place if place is not None else image.index(struct.pack("<HHI", tag, 3, 1))
        struct.pack_into("<HHII", image, place, tag, 4, 1, 65500)
    with pytest.raises(BrokenSample, match="65500 x 65500 is above the limit"):
        decode(bytes(image))


def test_the_limit_is_an_option_and_the_only_one() -> None:
    data = encoded(np.zeros((1000, 1000, 1), np.uint8), "PNG")
    with pytest.raises(BrokenSample, match="1000 x 1000 is above the limit of 999,999 pixels"):
        decode(data, options=DecodeOptions(max_pixels=999_999))
    assert decode(data, options=DecodeOptions(max_pixels=1_000_000)).shape == (1, 1000, 1000)
    assert decode(encoded(PHOTO, "GIF")).shape == (3, 24, 32)
    assert Image.MAX_IMAGE_PIXELS is None  # PIL would warn above 89 million pixels, and refuse twice as many


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000"])
def test_every_format_is_known_by_its_bytes(kind: str) -> None:
    data = encoded(PHOTO, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert sniff(data) == {"JPEG2000": "jp2"}.get(kind, kind.lower())
    difference = np.abs(decode(data, 3).permute(1, 2, 0).numpy().astype(int) - PHOTO)
    assert difference.mean() < 12


def test_other_bytes_are_not_an_image() -> None:
    assert sniff(b"\x93NUMPX") is None
    assert sniff(b"BM is the start of a text") is None
    with pytest.raises(BrokenSample, match="HEIC is not read: convert it"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.fromarray(np.full((8, 9, 3), shade, np.uint8)) for shade in (10, 200)]
    for kind in ("GIF", "WEBP", "AVIF", "PNG"):
        data = encoded(np.array(frames[0]), kind, save_all=True, append_images=frames[1:])
        assert abs(int(decode(data, 3).float().mean()) - 10) <= 2, kind
