"""Encoded bytes -> an image tensor with the wanted number of channels. The bytes decide, not the file name."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import decode_jpeg, decode_png, decode_webp

from swinv2_train.data.card import ImageFacts
from swinv2_train.data.errors import BrokenSample

_PNG_PALETTE = 3
_WEBP_NOT_PLAIN = 0x08 | 0x02  # flags of the VP8X chunk: EXIF, animation
_SOURCE_PLACE = re.compile(r"^.*\.(?:cpp|h):\d+, ")
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 16 bit fixed point, as PIL has it
_STATISTICS_PIXELS = 1 << 18


def sniff(data: bytes) -> str | None:
    """jpeg, png, webp or tiff by the first bytes; None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    return None


def decode(data: bytes, channels: int | None = None) -> Tensor:
    """(C, H, W) uint8, or uint16 for 16 bit images, upright by the EXIF orientation.

    Grey becomes three channels by repetition, RGB one channel by luma, and an alpha channel is dropped where it is one
    too many; any other difference from `channels` breaks the sample. None keeps what the image has, without alpha.

    Raises BrokenSample.
    """
    kind = sniff(data)
    if kind is None:
        raise BrokenSample("it is no JPEG, PNG, WebP or TIFF" if data else "it is empty")
    try:
        image, alpha = _DECODERS[kind](data)
    except BrokenSample:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise BrokenSample(f"{kind}: {_SOURCE_PLACE.sub('', str(error)) or type(error).__name__}") from None
    if 0 in image.shape:
        raise BrokenSample(f"{kind}: the image is empty, {tuple(image.shape)}")
    return _with_channels(image, alpha, channels)


def same_depth(tensors: list[Tensor]) -> list[Tensor]:
    """Where 8 and 16 bit images meet, the 8 bit ones are widened to the same share of the largest value."""
    if any(tensor.dtype == torch.uint16 for tensor in tensors):
        return [t.to(torch.int32).mul(257).to(torch.uint16) if t.dtype == torch.uint8 else t for t in tensors]
    return tensors


def image_facts(data: bytes, image: Tensor) -> ImageFacts:
    """What a decoded image adds to the dataset card; of large images, every n-th pixel is looked at."""
    _, height, width = image.shape
    stride = max(1, int((height * width / _STATISTICS_PIXELS) ** 0.5))
    bits = 16 if image.dtype == torch.uint16 else 8
    values = image[:, ::stride, ::stride].to(torch.float64).flatten(1) / (2**bits - 1)
    means, squares = values.mean(dim=1), values.square().mean(dim=1)
    return ImageFacts(sniff(data) or "", bits, height, width, tuple(means.tolist()), tuple(squares.tolist()))


def _with_channels(image: Tensor, alpha: bool, channels: int | None) -> Tensor:
    if alpha and image.shape[0] != channels:
        image = image[:-1]
    have = image.shape[0]
    if channels is None or have == channels:
        return image
    if (have, channels) == (1, 3):
        return image.expand(3, -1, -1)
    if (have, channels) == (3, 1):
        red, green, blue = (plane.to(torch.int64) for plane in image)
        luma = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000) >> 16
        return luma[None].to(image.dtype)
    raise BrokenSample(f"it has {have} channels, not {channels}")


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())  # a copy, as torch wants writable memory


def _jpeg(data: bytes) -> tuple[Tensor, bool]:
    image = decode_jpeg(_bytes_tensor(data), apply_exif_orientation=True)
    if image.shape[0] == 4:  # CMYK, inverted or not: PIL reads the markers that say which
        return _pil(data)
    return image, False


def _png(data: bytes) -> tuple[Tensor, bool]:
    if data[25:26] == bytes([_PNG_PALETTE]):  # the colour type in IHDR; torchvision would return the palette's indices
        return _pil(data)
    image = decode_png(_bytes_tensor(data), apply_exif_orientation=True)
    return image, image.shape[0] in (2, 4)


def _webp(data: bytes) -> tuple[Tensor, bool]:
    if data[12:16] == b"VP8X" and data[20] & _WEBP_NOT_PLAIN:
        return _pil(data)
    image = decode_webp(_bytes_tensor(data))
    return image, image.shape[0] == 4


def _pil(data: bytes) -> tuple[Tensor, bool]:
    """The slow way, for palettes, CMYK and what else needs more than pixels. Transparency is dropped."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as file:
        image = ImageOps.exif_transpose(file)
    array = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return _from_numpy(array if array.ndim == 3 else array[..., None]), False


def _tiff(data: bytes) -> tuple[Tensor, bool]:
    """8 or 16 bit, any number of channels, interleaved or planar or one page per channel."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        photometric = tifffile.PHOTOMETRIC(page.photometric)
        if photometric in (tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.SEPARATED):
            return _pil(data)
        if photometric in (tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB, tifffile.PHOTOMETRIC.ITULAB):
            raise BrokenSample("tiff: Lab colours are not read: convert to RGB")
        array, axes = series.asarray(maxworkers=1), series.axes
        alpha = any(int(extra) in (1, 2) for extra in page.extrasamples)
        tag = page.tags.get(274)
        orientation = int(tag.value) if tag is not None else 1
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype not in (np.uint8, np.uint16):
        raise BrokenSample(f"tiff: its samples are {array.dtype}: convert to 8 or 16 bit unsigned integers")
    array = _channels_last(array, axes)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        array = np.iinfo(array.dtype).max - array
    return _upright(_from_numpy(array), orientation), alpha


def _channels_last(array: np.ndarray, axes: str) -> np.ndarray:
    if "Y" not in axes or "X" not in axes or array.ndim not in (2, 3):
        raise BrokenSample(f"tiff: shape {array.shape} with axes {axes} is no image with channels")
    if array.ndim == 2:
        return array[..., None]
    (channel,) = (i for i, axis in enumerate(axes) if axis not in "YX")
    return np.moveaxis(array, channel, -1)


def _from_numpy(array: np.ndarray) -> Tensor:
    """(H, W, C) -> (C, H, W), in the byte order of this machine."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array).permute(2, 0, 1)


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Undo the orientation of TIFF tag 274 (EXIF numbers them alike)."""
    if orientation not in range(2, 9):
        return image
    array = image.numpy()
    if orientation >= 5:
        array = array.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(array))


_DECODERS: dict[str, Any] = {"jpeg": _jpeg, "png": _png, "webp": _webp, "tiff": _tiff}
