"""Facts read from the header of an encoded image, before any pixel is decoded: format, size, and EXIF orientation."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from swinv2_train.config import own_parts
from swinv2_train.data.errors import BrokenSample

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_IGNORED = frozenset(
    b"acTL bKGD caNv cHRM cICP cLLI dSIG fcTL fdAT gAMA gIFg gIFt gIFx hIST iCCP iDOT iTXt mDCV oFFs orNT pCAL pHYs "
    b"prVW sBIT sCAL sPLT sRGB sTER tEXt tIME vpAg zTXt".split()
)
"""Chunks that change no pixel here. Damage in them is harmless, and some programs write wrong checksums."""
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # TEM, RST0 to RST7, SOI: no length follows
_APP1 = 0xE1
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # EXIF types: byte, short, long


def sniff(data: bytes) -> str | None:
    """Return the format by the first bytes; None for anything else.

    jpeg, png, webp, tiff, bmp, gif, avif, or jp2; npy or npz for arrays of NumPy, where any other zip file is npz, too;
    or that of an own decoder.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == _PNG_SIGNATURE:
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "bmp"
    if data[4:8] == b"ftyp" and {b"avif", b"avis"} & set(_brands(data)):
        return "avif"
    if data[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or data[:4] == b"\xff\x4f\xff\x51":
        return "jp2"
    if data[:6] == b"\x93NUMPY":
        return "npy"
    own = own_parts.parts("decoders").items()
    found = next((name for name, one in own if data[one.offset : one.offset + len(one.magic)] == one.magic), None)
    if found is None and data[:4] == b"PK\x03\x04":
        return "npz"
    return found


def unknown_format(data: bytes) -> str:
    """Return why bytes that `sniff` does not know are not an image that can be read."""
    if not data:
        return "it is empty"
    if data[4:8] == b"ftyp" and {b"heic", b"heix", b"hevc", b"mif1"} & set(_brands(data)):
        return "HEIC is not read: convert it to JPEG or PNG"
    own = "".join(f", nor a {name}" for name in own_parts.parts("decoders"))
    return f"it is not a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, or JPEG 2000 image{own}"


def header_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG, PNG, or WebP; None if the header is damaged or of another format."""
    if kind == "jpeg":
        return jpeg_header(data)[0]
    reader = {"png": _png_size, "webp": _webp_size}.get(kind)
    return reader(data) if reader is not None else None


def orientation(data: bytes, kind: str) -> int:
    """Return the EXIF orientation, 1 to 8, of a JPEG, PNG, or WebP; 1 if it has none.

    XMP and other metadata may come before the EXIF block. An orientation only in XMP is ignored.
    """
    if kind == "jpeg":
        return jpeg_header(data)[1]
    blocks = {"png": _png_exif, "webp": _webp_exif}[kind]
    return next((found for block in blocks(data) if (found := _exif_orientation(block)) is not None), 1)


def jpeg_header(data: bytes) -> tuple[tuple[int, int] | None, int]:
    """Return ((height, width) of a JPEG as it is stored, or None if the header is damaged; its EXIF orientation)."""
    size, turned = None, None
    for marker, start, length in _jpeg_segments(data):
        if marker == _APP1 and turned is None and data[start : start + 6] == _EXIF:
            turned = _exif_orientation(data[start + 6 : start + length])
        elif marker in _JPEG_FRAMES and size is None and length >= 5 and len(data) >= start + 5:
            height, width = struct.unpack_from(">HH", data, start + 1)
            size = (height, width)
    return size, turned or 1


def check_png(data: bytes) -> None:
    """Compare the checksums of a PNG with its chunks, so that damaged bytes never reach a decoder.

    Chunks that no pixel depends on are not checked. Raises BrokenSample.
    """
    view, last = memoryview(data), b""
    for name, start, size in _png_chunks(data):
        last = name
        if name in _PNG_IGNORED:
            continue
        if start + size + 4 > len(data):
            raise BrokenSample(f"png: it ends inside a chunk {_named(name)}")
        if zlib.crc32(view[start - 4 : start + size]) != int.from_bytes(view[start + size : start + size + 4], "big"):
            raise BrokenSample(f"png: the checksum of a chunk {_named(name)} is wrong")
    if last != b"IEND":
        raise BrokenSample("png: it ends early")


def _named(chunk: bytes) -> str:
    return chunk.decode() if chunk.isalpha() else repr(chunk)[1:]


def _brands(data: bytes) -> list[bytes]:
    """Major and compatible brands of an ISO base media file (AVIF, HEIC)."""
    box = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return [box[:4], *(box[i : i + 4] for i in range(8, len(box), 4))]


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, size) of the segments before the first scan, finding markers the way libjpeg does."""
    position = 2
    while True:
        position = data.find(b"\xff", position)
        while 0 <= position < len(data) and data[position] == 0xFF:
            position += 1
        if not 0 <= position < len(data):
            return
        marker = data[position]
        position += 1
        if marker == 0 or marker in _JPEG_BARE:
            continue
        size = int.from_bytes(data[position : position + 2], "big")
        if size < 2 or marker in (0xD9, 0xDA):
            return
        yield marker, position + 2, size - 2
        position += size


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, size) of every chunk up to IEND; the last one may reach past the end of the data."""
    position, name = len(_PNG_SIGNATURE), b""
    while position + 8 <= len(data) and name != b"IEND":
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        yield name, position + 8, size
        position += size + 12


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _png_exif(data: bytes) -> Iterator[bytes]:
    for name, start, size in _png_chunks(data):
        if name == b"eXIf":
            yield data[start : start + size]


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        yield data[position : position + 4], position + 8, size
        position += 8 + size + size % 2


def _webp_size(data: bytes) -> tuple[int, int] | None:
    head = data[20:30]
    if len(head) < 10:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(head[7:10], "little") + 1, int.from_bytes(head[4:7], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        return int.from_bytes(head[8:10], "little") & 0x3FFF, int.from_bytes(head[6:8], "little") & 0x3FFF
    return None


def _webp_exif(data: bytes) -> Iterator[bytes]:
    for name, start, size in _webp_chunks(data):
        if name == b"EXIF":
            yield data[start : start + size].removeprefix(_EXIF)


def _exif_orientation(block: bytes) -> int | None:
    """Return the orientation in the first directory of an EXIF block; None if it has none that is valid."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(entries):
            place = directory + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(order + "HHI", block, place)
            if tag == _ORIENTATION and kind in _INTEGERS and count == 1:
                (value,) = struct.unpack_from(order + _INTEGERS[kind], block, place + 8)
                return value if 1 <= value <= 8 else None
    except struct.error:  # the block ends early
        pass
    return None
