"""Decoding of no more of an image than a drawn crop needs.

Of a JPEG, the part under the crop is decoded, by `jpeg_part` where it is compiled. With scaled decoding, a crop that is
much larger than its result is decoded at 1/2, 1/4, or 1/8 of its size, which libjpeg does before the inverse transform.
Other formats are decoded entirely. The pixels depend on the options alone, not on the decoders of the machine.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from swinv2_train.data.decode import DecodeOptions, opaque
from swinv2_train.data.geometry import Crop
from swinv2_train.data.image_header import jpeg_header, sniff
from swinv2_train.data.jpeg_part import Box, decode_part
from swinv2_train.data.pixels import Pixels, from_numpy, upright

LEFT_OVER = 2
"""Times the size of the result that a scaled image keeps: with less, the reduction would be visible after resizing."""
_MIRRORED_ROWS, _MIRRORED_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)  # EXIF orientations


@dataclass(frozen=True)
class JpegFrame:
    """Facts about the pixels of a JPEG from its header."""

    stored: tuple[int, int]
    """Height and width as they are stored."""
    turned: int
    """EXIF orientation, 1 to 8."""

    @classmethod
    def of(cls, data: bytes) -> JpegFrame | None:
        """Return the frame of a JPEG; None if the header is damaged, or for other formats."""
        if sniff(data) != "jpeg":
            return None
        size, turned = jpeg_header(data)
        return None if size is None else cls(size, turned)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return self.stored[::-1] if self.turned >= 5 else self.stored

    def stored_box(self, crop: Crop) -> Box:
        """Return the box of a crop in the image as it is stored, the inverse of `pixels.upright`."""
        (tall, wide), (top, left, height, width) = crop.source, crop.box
        if self.turned in _MIRRORED_COLUMNS:
            left = wide - left - width
        if self.turned in _MIRRORED_ROWS:
            top = tall - top - height
        return (left, top, width, height) if self.turned >= 5 else (top, left, height, width)

    def scale(self, crop: Crop, options: DecodeOptions) -> int:
        """Return 1, 2, 4, or 8: a crop is decoded at this fraction of its size."""
        if not (options.scaled and options.parts):
            return 1
        # Multiples counted from the other end of a side are multiples only if the side is one.
        rows = self.size[0] if self.turned in _MIRRORED_ROWS else 0
        columns = self.size[1] if self.turned in _MIRRORED_COLUMNS else 0
        for scale in (8, 4, 2):
            kept = (side // scale for side in crop.box[2:])
            enough = all(side >= LEFT_OVER * wanted for side, wanted in zip(kept, crop.scaled, strict=True))
            if enough and rows % scale == 0 and columns % scale == 0:
                return scale
        return 1


def aligned(frame: JpegFrame | None, crop: Crop, options: DecodeOptions) -> Crop:
    """Return the crop, with its box moved to multiples of the scale at which `decode_crop` will decode this image.

    Everything that lies on the image, such as a label map, must be cropped with the result. Without `options.scaled` it
    is the crop itself; with it, sides move by less than half a pixel of the result.
    """
    scale = 1 if frame is None else frame.scale(crop, options)
    top, left, height, width = (value // scale * scale for value in crop.box)
    return crop if scale == 1 else replace(crop, box=(top, left, height, width))


def decode_crop(
    data: bytes, frame: JpegFrame | None, crop: Crop, channels: int | None, options: DecodeOptions
) -> tuple[Tensor, Crop] | None:
    """Return pixels that contain a crop, and the same crop as a crop of these pixels.

    None if the entire image must be decoded: other formats, and files that are left to `decode`. Among them is every
    file that `decode` refuses, so it names the reason; but at a fraction of its size, PIL may read a damaged one.

    Args:
        frame: that of the data.
        crop: drawn for the upright image, and `aligned`.
        channels: as in `decode`.

    Returns:
        ((C, height, width) uint8, upright; the crop to be applied to it).

    Raises:
        BrokenSample: if the image cannot have this number of channels.
    """
    fits = frame is not None and frame.size == crop.source and math.prod(frame.stored) <= options.max_pixels
    if frame is None or not (options.parts and fits):
        return None
    scale = frame.scale(crop, options)
    top, left, height, width = (value // scale for value in frame.stored_box(crop))
    box = (top, left, height, width)
    part = decode_part(data, box, scale)
    if part is None and scale > 1:
        part = _by_pil(data, box, scale)
    if part is None:
        return None
    image = opaque(Pixels(upright(part, frame.turned)), channels, options.background)
    height, width = image.shape[-2:]
    return image, replace(crop, source=(height, width), box=(0, 0, height, width))


def _by_pil(data: bytes, box: Box, scale: int) -> Tensor | None:
    """Decode at a fraction of the size with PIL, whose libjpeg returns the same pixels; None if it does not."""
    from PIL import Image

    top, left, height, width = box
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "RGB"):
                return None
            size = (-(-image.width // scale), -(-image.height // scale))
            image.draft(None, (image.width // scale, image.height // scale))
            if image.size != size:
                return None
            array = np.array(image)
    except Exception:  # PIL may raise anything on damaged bytes; the other decoder names the reason
        return None
    array = array if array.ndim == 3 else array[..., None]
    return from_numpy(array[top : top + height, left : left + width])
