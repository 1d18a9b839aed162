"""Decoders of the user for image formats that are not built in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from swinv2_train.config import own_parts
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.pixels import Pixels, check_size, from_values


def own_decoder(kind: str) -> Callable[[bytes, int], Pixels]:
    """Return the decoder of a format of `own_parts`: (bytes of a file, largest number of pixels) -> pixels.

    It raises BrokenSample if the function returns anything but an image of real numbers.
    """
    read = own_parts.function_of(own_parts.parts("decoders")[kind].read)

    def decode(data: bytes, max_pixels: int) -> Pixels:
        array = np.array(read(data))  # a copy, as torch wants writable memory
        if array.ndim not in (2, 3):
            shape = "x".join(map(str, array.shape)) or "a single number"
            raise BrokenSample(f"its decoder returned {shape}, not an array (H, W) or (H, W, C)")
        check_size(*array.shape, max_pixels=max_pixels)
        return from_values(array if array.ndim == 3 else array[..., None])

    return decode
