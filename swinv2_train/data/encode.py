"""Encoded images: those that packing makes itself, because it shrinks or cuts them, and label maps."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import tifffile

    from swinv2_train.data.pixels import Pixels

_GDAL_NODATA = 42113
_ALPHA = {True: 1, False: 2}
"""Kind of alpha in the tag ExtraSamples, by whether colors are multiplied by it."""


def encode(image: Tensor, quality: int | None, *, alpha: bool = False) -> bytes:
    """Encode an image: JPEG for 8 bits with 1 or 3 channels, deflated TIFF for all others.

    With alpha as the last channel: PNG for gray and RGB.

    Args:
        image: (C, H, W) uint8 or uint16.
        quality: of JPEG; None: PNG instead, and for 16 bits with up to 4 channels as well.
    """
    channels = image.shape[0]
    array = image.permute(1, 2, 0).contiguous().numpy()
    if (alpha and channels in (2, 4)) or (quality is None and channels in (1, 3)):
        return png_bytes(array)
    buffer = io.BytesIO()
    if image.dtype == torch.uint8 and channels in (1, 3):
        from PIL import Image

        Image.fromarray(array if channels == 3 else array[..., 0]).save(buffer, "JPEG", quality=quality)
    else:
        import tifffile

        if channels == 1:
            tifffile.imwrite(buffer, array[..., 0], photometric="minisblack", compression="zlib")
        else:
            kind: dict[str, Any] = {"photometric": "rgb" if channels == 3 else "minisblack"}
            if alpha:
                kind["extrasamples"] = ["unspecified"] * (channels - 2) + ["unassalpha"]
            tifffile.imwrite(buffer, array, **kind, planarconfig="contig", compression="zlib")
    return buffer.getvalue()


def png_bytes(array: np.ndarray) -> bytes:
    """Encode (H, W) or (H, W, C) uint8 or uint16 as PNG."""
    import imagecodecs

    return imagecodecs.png_encode(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def npy_bytes(image: Tensor, stored: str) -> bytes:
    """Encode an image (C, H, W) as an array of NumPy of the type that was stored; empty: that of the image."""
    buffer = io.BytesIO()
    array = image.numpy()
    np.save(buffer, array.astype(stored) if stored else array, allow_pickle=False)
    return buffer.getvalue()


def pixels_tiff(pixels: Pixels) -> bytes:
    """Encode decoded pixels as a TIFF that decodes to the same: with the stored values, their depth, and their meaning.

    It is deflated, except for depths such as 12 bits, which tifffile does not compress.
    """
    image = pixels.image if pixels.raw is None else pixels.raw
    array = image.permute(1, 2, 0).contiguous().numpy()
    if pixels.stored:
        array = array.astype(pixels.stored)
    plain = len(image) - pixels.alpha
    rgb = plain == 3 and not pixels.inverted and not pixels.stored
    extra = [0] * (plain - (3 if rgb else 1)) + [_ALPHA[pixels.premultiplied]] * pixels.alpha
    kind: dict[str, Any] = {"photometric": "rgb" if rgb else "miniswhite" if pixels.inverted else "minisblack"}
    if extra:
        kind["extrasamples"] = extra
    if pixels.depth % 8:
        kind["bitspersample"] = pixels.depth
        kind["compression"] = None
    return _tiff(array, kind, pixels.nodata)


def tiff_bytes(array: np.ndarray, page: tifffile.TiffPage, nodata: float | None) -> bytes:
    """Encode a part of a TIFF, (H, W, C), as a deflated TIFF with the same values, and the same meaning of them.

    Args:
        page: of the TIFF that it is a part of.
        nodata: value of pixels without data, for the tag GDAL_NODATA.
    """
    import tifffile

    channels = array.shape[-1]
    rgb = tifffile.PHOTOMETRIC(page.photometric) != tifffile.PHOTOMETRIC.MINISBLACK and channels >= 3
    colors = 3 if rgb else 1
    stated = [int(sample) for sample in page.extrasamples]
    extra = stated if len(stated) == channels - colors else [0] * (channels - colors)
    kind: dict[str, Any] = {"photometric": "rgb" if rgb else "minisblack"}
    if extra:
        kind["extrasamples"] = extra
    return _tiff(array, kind, nodata)


def _tiff(array: np.ndarray, kind: dict[str, Any], nodata: float | None) -> bytes:
    """Encode (H, W, C) as a TIFF of a kind of colors, deflated unless the kind names another compression."""
    import tifffile

    channels = array.shape[-1]
    if channels > 1:
        kind = kind | {"planarconfig": "contig"}
    # For integers without a decimal point, as GDAL writes it; tifffile understands only that.
    text = f"{nodata:.0f}" if nodata is not None and nodata.is_integer() else str(nodata)
    tags = [] if nodata is None else [(_GDAL_NODATA, "s", 0, text, True)]
    data = array if channels > 1 else array[..., 0]
    with io.BytesIO() as buffer:  # closed, because tifffile's objects keep it until the garbage collector runs
        tifffile.imwrite(buffer, data, **({"compression": "zlib"} | kind), extratags=tags, metadata=None)
        return buffer.getvalue()
