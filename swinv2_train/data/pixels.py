"""Decoded pixels before anything is adapted to a model, and what all decoders share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.errors import BrokenSample

_COLOR_CHANNELS = 4
LUMA = (19595, 38470, 7471)
"""Weights of red, green, and blue: ITU-R 601-2 in 16 bit fixed point, as PIL has it."""
_LARGEST = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0}
_EXACT = 1 << 53
"""Integers up to here are exact in float64."""


@dataclass(frozen=True)
class Pixels:
    """A decoded image, upright, with all its channels."""

    image: Tensor
    """(C, H, W) uint8 or uint16 over their full range; other types as float32, or float64 if that loses digits."""
    alpha: bool = False
    """True if the last channel is alpha."""
    premultiplied: bool = False
    """True if the colors are already multiplied by alpha."""
    stored: str = ""
    """Type of the stored values, such as int16, if it is neither uint8 nor uint16."""
    nodata: float | None = None
    """Stored value of pixels without data, if the file names one."""
    raw: Tensor | None = None
    """The stored samples, (C, H, W), if `image` has them scaled to the full range of 8 or 16 bits or inverted."""
    depth: int = 0
    """Bits of each sample in `raw`."""
    inverted: bool = False
    """True if 0 is stored for white, so that `image` is inverted."""

    def as_stored(self) -> Pixels:
        """Return the pixels with the stored samples as the image.

        Raises:
            BrokenSample: if they have another order than the intensities, or an alpha channel of fewer bits.
        """
        if self.inverted:
            raise BrokenSample("its samples are inverted (MINISWHITE), and data.scale is set: convert to MINISBLACK")
        if self.raw is None:
            return self
        if self.alpha:
            raise BrokenSample("it has alpha of less than 8 or 16 bits, and data.scale is set: convert to 8 or 16 bits")
        return replace(self, image=self.raw, raw=None)

    @property
    def transparent(self) -> bool:
        """True if any pixel is not opaque."""
        if not self.alpha:
            return False
        largest = 255 if self.image.dtype == torch.uint8 else 65535
        return bool((self.image[-1].numpy() != largest).any())


def check_size(height: int, width: int, channels: int = 1, *, max_pixels: int) -> None:
    """Check the size in a header before its pixels are allocated.

    More than four channels count in proportion, because the limit is for memory.

    Raises:
        BrokenSample: if the image has more than `max_pixels`.
    """
    pixels = height * width * max(channels, _COLOR_CHANNELS) // _COLOR_CHANNELS
    if pixels > max_pixels:
        many = f" x {channels}" if channels > _COLOR_CHANNELS else ""
        raise BrokenSample(
            f"{width} x {height}{many} is above the limit of {max_pixels:,} pixels (data.max_pixels, --max-pixels)"
        )


def from_numpy(array: np.ndarray) -> Tensor:
    """(H, W, C) -> (C, H, W), in the byte order of this machine."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array).permute(2, 0, 1)


def from_values(array: np.ndarray, nodata: float | None = None) -> Pixels:
    """(H, W, C) real numbers of any type -> pixels, exactly.

    Raises:
        BrokenSample: if they are of another type, or integers beyond 2**53.
    """
    dtype = array.dtype.newbyteorder("=")
    if dtype in (np.uint8, np.uint16):
        return Pixels(from_numpy(array), nodata=nodata)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BrokenSample(f"its samples are {dtype}: convert to integers or floating-point numbers")
    if dtype.kind != "f" and dtype.itemsize == 8 and array.size and max(-int(array.min()), int(array.max())) > _EXACT:
        raise BrokenSample(f"its samples are {dtype} and above 2**53: convert to smaller numbers")
    wide = np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64
    return Pixels(from_numpy(array.astype(wide)), stored=str(dtype), nodata=nodata)


def largest_value(image: Tensor) -> float:
    """Return the value of a decoded image that means 1: 255, 65535, or 1 for float32."""
    return _LARGEST[image.dtype]


def upright(image: Tensor, orientation: int) -> Tensor:
    """Undo an orientation as EXIF and TIFF (tag 274) number them."""
    if orientation not in range(2, 9):
        return image
    array = image.numpy()
    if orientation >= 5:
        array = array.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, :, ::-1]
    return torch.from_numpy(array.copy())  # not ascontiguousarray: it keeps negative strides of sides of one pixel


def stored_box(box: tuple[int, int, int, int], size: tuple[int, int], orientation: int) -> tuple[int, int, int, int]:
    """Return the part of the stored pixels that `upright` makes a part of the upright image of.

    Args:
        box: top, left, height, and width in the upright image.
        size: height and width as stored.
    """
    top, left, tall, wide = box
    if orientation not in range(2, 9):
        return box
    height, width = size[::-1] if orientation >= 5 else size
    if orientation in (3, 4, 7, 8):
        top = height - top - tall
    if orientation in (2, 3, 6, 7):
        left = width - left - wide
    return (left, top, wide, tall) if orientation >= 5 else (top, left, tall, wide)


def same_depth(images: list[Tensor]) -> list[Tensor]:
    """Return images of one depth: if 8 and 16 bit ones meet, the 8 bit ones are scaled to the range of 16 bits."""
    if any(image.dtype == torch.uint16 for image in images):
        return [t.to(torch.int32).mul(257).to(torch.uint16) if t.dtype == torch.uint8 else t for t in images]
    return images
