"""Images in NumPy files: one array (`npy`), or an archive with one (`npz`). Pickled objects are never read."""

from __future__ import annotations

import io
import zipfile
from typing import BinaryIO

import numpy as np

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.pixels import Pixels, check_size, from_values

ARRAY_KINDS = ("npy", "npz")
"""Formats, as `image_header.sniff` names them."""
_NAMED = "image.npy"
"""Member of an archive that is the image if it has several arrays."""


def read_npy(data: bytes, max_pixels: int) -> Pixels:
    """Read an array of 2 dimensions, (H, W), or 3, (C, H, W) or (H, W, C). Raises BrokenSample."""
    return _pixels(io.BytesIO(data), max_pixels)


def read_npz(data: bytes, max_pixels: int) -> Pixels:
    """Read the only array of an archive, or the one called `image`. Raises BrokenSample."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(names) > 1 and _NAMED in names:
            names = [_NAMED]
        if len(names) != 1:
            listed = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "none"
            raise BrokenSample(f"it has {len(names)} arrays ({listed}): store one array, or call one of them image")
        with archive.open(names[0]) as member:
            found = _pixels(member, max_pixels)
            member.read(1)  # at the end of the member, its checksum is compared
            return found


def _pixels(file: BinaryIO, max_pixels: int) -> Pixels:
    """Read an array after a check of its shape and type."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise BrokenSample(f"it has version {version[0]}.{version[1]} of the format, which only structures need")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(file)
    axis = _channel_axis(shape)
    channels = 1 if axis is None else shape[axis]
    height, width = (side for number, side in enumerate(shape) if number != axis)
    check_size(height, width, channels, max_pixels=max_pixels)
    if dtype.hasobject or dtype.kind not in "iuf":
        raise BrokenSample(f"its values are {dtype}: convert to integers or floating-point numbers")
    size = height * width * channels * dtype.itemsize
    content = file.read(size)
    if len(content) < size:
        raise BrokenSample(f"it ends {size - len(content)} bytes too early")
    array = np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if by_columns else "C")
    last = array[..., None] if axis is None else np.moveaxis(array, axis, -1)
    return from_values(last)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels, the smaller of the first and the last one; None for two dimensions."""
    if len(shape) == 2:
        return None
    if len(shape) != 3 or shape[0] == shape[2]:
        raise BrokenSample(
            f"its shape {shape} is not that of an image: store (height, width), or three dimensions whose first or "
            "last one, the channels, is the smaller of the two"
        )
    return 0 if shape[0] < shape[2] else 2
