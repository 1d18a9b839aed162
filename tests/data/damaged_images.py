"""Damaged image files for a test and a benchmark; format, seed, and number always make the same file."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from tests.data.samples import encoded

_HEIGHT, _WIDTH = 48, 64


def damaged(kind: str, number: int, seed: int = 0) -> bytes:
    """Return a file of a format, damaged: flipped bits, wrong or zeroed bytes, a wrong header, cut off, or shuffled."""
    rng = random.Random(f"{kind}/{seed}/{number}")
    data = bytearray(rng.choice(intact(kind)))
    rng.choice([_flip_bits, _flip_bits, _set_bytes, _cut, _zero, _change_header, _repeat])(data, rng)
    return _with_checksums(bytes(data)) if kind == "png with checksums" else bytes(data)


@functools.cache
def intact(kind: str) -> list[bytes]:
    """Return files of a format, of different kinds of content and compression."""
    return FORMATS[kind]()


def noisy(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, C): smooth waves with noise."""
    rng = np.random.default_rng(channels)
    rows, columns = np.linspace(0, 4, _HEIGHT)[:, None, None], np.linspace(0, 5, _WIDTH)[None, :, None]
    waves = np.sin(rows + columns + rng.uniform(0, 6, channels)) + rng.normal(0, 0.05, (_HEIGHT, _WIDTH, channels))
    return ((np.clip(waves, -1, 1) + 1) / 2 * np.iinfo(dtype).max).astype(dtype)


def _tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def _jpegs() -> list[bytes]:
    image = noisy(3)
    plain = [
        encoded(image, progressive=progressive, quality=quality)
        for progressive in (False, True)
        for quality in (60, 95)
    ]
    return [*plain, encoded(image, subsampling=0), encoded(noisy(1)), encoded(image, mode="CMYK")]


def _pngs() -> list[bytes]:
    deep = [imagecodecs.png_encode(noisy(channels, np.uint16).squeeze()) for channels in (1, 2, 3, 4)]
    plain = [encoded(noisy(channels), "PNG") for channels in (1, 3, 4)]
    palettes = [encoded(noisy(3), "PNG", mode="P"), encoded(noisy(3), "PNG", mode="P", transparency=3)]
    return [*plain, *palettes, encoded(noisy(1), "PNG", mode="1"), *deep]


def _webps() -> list[bytes]:
    from PIL import Image

    frames = {"save_all": True, "append_images": [Image.fromarray(noisy(3)[::-1].copy())]}
    kinds = [{"quality": 80}, {"lossless": True}]
    return [encoded(noisy(channels), "WEBP", **kind) for channels in (3, 4) for kind in kinds] + [
        encoded(noisy(3), "WEBP", **frames)
    ]


def _tiffs() -> list[bytes]:
    image, deep = noisy(3), noisy(3, np.uint16)
    packed = [
        _tiff(image, photometric="rgb", compression=name)
        for name in ("lzw", "zlib", "lzma", "zstd", "packbits", "webp", "jpeg2000")
    ]
    return [
        *packed,
        _tiff(image, photometric="rgb"),
        _tiff(deep, photometric="rgb", compression="lzw", predictor=True, tile=(16, 16)),
        _tiff(noisy(4), photometric="rgb", extrasamples=["assocalpha"]),
        _tiff(np.moveaxis(noisy(5, np.uint16), -1, 0).copy(), photometric="minisblack"),
        _tiff((noisy(1)[..., 0] >> 4), bitspersample=4, photometric="miniswhite"),
        encoded(image, "TIFF", compression="jpeg"),
        encoded(image, "TIFF", mode="P"),
        encoded(image, "TIFF", mode="YCbCr", compression="tiff_lzw"),
        encoded(noisy(1), "TIFF", mode="1", compression="group4"),
    ]


def _by_pil(kind: str, *options: dict[str, Any]) -> Callable[[], list[bytes]]:
    return lambda: [
        encoded(noisy(channels), kind, **each) for channels in ((1, 3) if kind == "GIF" else (3, 4)) for each in options
    ]


FORMATS: dict[str, Callable[[], list[bytes]]] = {
    "jpeg": _jpegs,
    "png": _pngs,
    "png with checksums": _pngs,
    "webp": _webps,
    "tiff": _tiffs,
    "bmp": _by_pil("BMP", {}),
    "gif": _by_pil("GIF", {}),
    "avif": _by_pil("AVIF", {"quality": 60, "speed": 9}),
    "jp2": _by_pil("JPEG2000", {}, {"quality_mode": "rates", "quality_layers": [20], "irreversible": True}),
}
"""Functions that make the intact files of each format. `png with checksums`: damage that checksums do not show."""


def _with_checksums(data: bytes) -> bytes:
    fixed, position = bytearray(data), 8
    while position + 12 <= len(fixed):
        (size,) = struct.unpack_from(">I", fixed, position)
        end = position + 8 + size
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


def _flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] = rng.randrange(256)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _zero(data: bytearray, rng: random.Random) -> None:
    start, size = rng.randrange(len(data)), rng.randint(1, 64)
    data[start : start + size] = bytes(len(data[start : start + size]))


def _change_header(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(min(len(data), 100))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])


def _repeat(data: bytearray, rng: random.Random) -> None:
    start, size = rng.randrange(len(data)), rng.randint(1, 64)
    data[start:start] = data[start : start + size]
