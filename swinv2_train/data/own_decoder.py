"""Decoders of the user for image formats that are not built in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from swinv2_train.config import own_parts
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.pixels import Pixels, check_size, from_numpy


def own_decoder(kind: str) -> Callable[[bytes, int], Pixels]:
    """Return the decoder of a format of `own_parts`: (bytes of a file, largest number of pixels) -> pixels.

    It raises BrokenSample if the function returns anything but an image of integers.
    """
    read = own_parts.function_of(own_parts.parts("decoders")[kind].read)

    def decode(data: bytes, max_pixels: int) -> Pixels:
        array = np.array(read(data))  # a copy, as torch wants writable memory
        if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16) or array.ndim not in (2, 3):
            shape = "x".join(map(str, array.shape))
            raise BrokenSample(f"its decoder returned {shape} {array.dtype}, not (H, W[, C]) of uint8 or uint16")
        check_size(*array.shape[:2], max_pixels=max_pixels)
        return Pixels(from_numpy(array if array.ndim == 3 else array[..., None]))

    return decode
