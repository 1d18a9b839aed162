"""Images that PIL decodes: palettes and CMYK inside other formats, animations, BMP, GIF, AVIF, and JPEG 2000."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import orientation, sniff
from swinv2_train.data.pixels import Pixels, check_size, from_numpy, upright

# `data.max_pixels` is checked instead. PIL's own limit would warn above 89 million pixels and refuse twice as many.
Image.MAX_IMAGE_PIXELS = None
_GRAY = ("1", "L", "LA", "La")
_ORIENTATION = 0x0112
_EXIF_FORMATS = ("jpeg", "png", "webp")


def read_with_pil(data: bytes, max_pixels: int, page: int = 0) -> Pixels:
    """Decode one page or frame as gray, gray and alpha, RGB, or RGBA; 16 bit only for gray.

    Raises BrokenSample for depths above 16 bits and images above `max_pixels`; PIL may raise anything on damaged bytes.
    """
    with Image.open(io.BytesIO(data)) as image:
        if page:
            image.seek(page)
        check_size(image.height, image.width, max_pixels=max_pixels)
        image.load()
        turned = orientation(data, kind) if (kind := sniff(data)) in _EXIF_FORMATS else _exif_of(image)
        if image.mode.startswith("I;16"):
            return Pixels(upright(from_numpy(np.array(image)[..., None]), turned))
        if image.mode in ("I", "F"):
            raise BrokenSample(f"its samples are 32 bit (mode {image.mode}): convert to 8 or 16 bit unsigned integers")
        if image.mode == "LAB":
            raise BrokenSample("Lab colors are not read: convert to RGB")
        alpha = image.has_transparency_data
        gray = image.mode in _GRAY
        mode = ("LA" if gray else "RGBA") if alpha else ("L" if gray else "RGB")
        array = np.array(image if image.mode == mode else image.convert(mode))
    return Pixels(upright(from_numpy(array if array.ndim == 3 else array[..., None]), turned), alpha)


def _exif_of(image: Image.Image) -> int:
    """The orientation as PIL finds it; 1 if the metadata is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata may raise anything, and the pixels are fine
        return 1
