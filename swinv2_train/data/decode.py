"""Encoded bytes -> an image tensor with the requested number of channels. The bytes decide, not the file name.

No decoder here ends the process on damaged bytes: scripts/bench/fuzz_images.py tries thousands of damaged files.
torchvision's PNG decoder does, so PNG is decoded by imagecodecs, after a check of its checksums.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.background import WHITE, Background, background_color, flatten
from swinv2_train.data.card import ImageFacts
from swinv2_train.data.codecs import decode_jpeg, decode_webp
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import check_png, header_size, orientation, sniff, unknown_format
from swinv2_train.data.own_decoder import own_decoder
from swinv2_train.data.pixels import LUMA, Pixels, check_size, from_numpy, upright
from swinv2_train.data.remarks import collected
from swinv2_train.data.unit_values import ALL_MISSING, missing_of, unit_values
from swinv2_train.data.value_range import Nodata, ValueRange
from swinv2_train.data.value_stats import ValueStats

if TYPE_CHECKING:
    from swinv2_train.config.schema import DataConfig

MAX_PIXELS = 200_000_000
_WEBP_NOT_PLAIN = 0x08 | 0x02  # flags of the VP8X chunk: EXIF, animation
_SOURCE_PLACE = re.compile(r"^.*\.(?:cpp|h):\d+, ")
_ADDRESS = re.compile(r"<_io\.\w+ object at 0x[0-9a-f]+>")
_LONGEST_REASON = 200  # characters; tifffile quotes whole tables
_STATISTICS_PIXELS = 1 << 18


@dataclass(frozen=True)
class DecodeOptions:
    """Decoding options of images, other than the number of channels."""

    background: Background = WHITE
    """Color behind transparent pixels; None: drop the alpha channel."""
    max_pixels: int = MAX_PIXELS
    """Largest image that is decoded, in pixels; checked before memory is allocated."""
    parts: bool = True
    """Decode only the part that a training crop needs, see `crop_decode`; the pixels are the same."""
    scaled: bool = False
    """Decode crops that are much larger than their result at a fraction of their size, if `parts` is set."""
    values: ValueRange | None = None
    """Range of the stored values that becomes 0 to 1 (`data.scale`); None: intensities of 8 or 16 bits."""

    @classmethod
    def of(cls, config: DataConfig, mean: Sequence[float], *, repeats: int = 1) -> DecodeOptions:
        """Return the options of a config whose images are normalized with `mean`.

        Args:
            repeats: crops of each image in a batch; an image with several is decoded once, entirely.
        """
        background = background_color(config.background, mean)
        values = ValueRange.of(config, mean)
        parts = config.crop_decoding and repeats == 1 and values is None
        return cls(background, config.max_pixels, parts, config.scaled_decoding and values is None, values)


def decode(data: bytes, channels: int | None = None, options: DecodeOptions | None = None) -> Tensor:
    """Return (C, H, W) uint8, or uint16 for 16 bit images, upright by the EXIF orientation; of an animation, frame 1.

    With `options.values` the result is float32 in [0, 1], see `unit_values`. Without it, images of other types than
    unsigned 8 and 16 bit integers break the sample.

    Transparent images are put on `options.background`, unless `channels` counts the alpha channel. Gray becomes three
    channels by repetition, RGB one channel by luma; any other difference from `channels` breaks the sample. With None,
    the image keeps its channels, without alpha.

    Raises BrokenSample.
    """
    options = options or DecodeOptions()
    pixels = read_pixels(data, options.max_pixels)
    if pixels.stored and options.values is None:
        raise BrokenSample(f"{sniff(data)}: {_unscaled(pixels)}")
    return adapted(pixels, channels, options)


def adapted(pixels: Pixels, channels: int | None, options: DecodeOptions, *, part: bool = False) -> Tensor:
    """Return decoded pixels as `decode` returns them.

    Args:
        part: the pixels are a part of an image, so all of them may be without data.

    Raises:
        BrokenSample: as `decode`.
    """
    if options.values is not None:
        return unit_values(pixels, channels, options.values, options.background, part=part)
    if pixels.stored:
        raise BrokenSample(_unscaled(pixels))
    return opaque(pixels, channels, options.background)


def _unscaled(pixels: Pixels) -> str:
    return (
        f"its samples are {pixels.stored}: convert to 8 or 16 bit unsigned integers, or set data.scale to the range of "
        "the values"
    )


@contextlib.contextmanager
def decoding(kind: str) -> Iterator[None]:
    """Turn every error inside this block into a BrokenSample that names the format, and count other remarks."""
    try:
        with collected():
            yield
    except BrokenSample as error:
        raise BrokenSample(error.reason if error.reason.startswith(kind) else f"{kind}: {error.reason}") from None
    except MemoryError:
        raise BrokenSample(f"{kind}: not enough memory to decode it") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise BrokenSample(f"{kind}: {read_reason(error)}") from None


def read_pixels(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image with all its channels, upright. Raises BrokenSample."""
    kind = sniff(data)
    if kind is None:
        raise BrokenSample(unknown_format(data))
    size = header_size(data, kind)
    with decoding(kind):
        if size is not None:
            check_size(*size, max_pixels=max_pixels)
        pixels = (_DECODERS.get(kind) or own_decoder(kind))(data, max_pixels)
    if 0 in pixels.image.shape:
        raise BrokenSample(f"{kind}: the image is empty, {tuple(pixels.image.shape)}")
    return pixels


def opaque(pixels: Pixels, channels: int | None, background: Background) -> Tensor:
    """Return the image with `channels` channels, see `decode`. Raises BrokenSample."""
    image = pixels.image
    if pixels.alpha and image.shape[0] != channels:
        image = flatten(image, background, premultiplied=pixels.premultiplied)
    have = image.shape[0]
    if channels is None or have == channels:
        return image
    if (have, channels) == (1, 3):
        return image.expand(3, -1, -1)
    if (have, channels) == (3, 1) and pixels.stored:
        weights = torch.tensor(LUMA, dtype=torch.float64)[:, None, None] / sum(LUMA)
        return (image * weights).sum(dim=0, keepdim=True)
    if (have, channels) == (3, 1):
        red, green, blue = (plane.to(torch.int64) for plane in image)
        luma = (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000) >> 16
        return luma[None].to(image.dtype)
    raise BrokenSample(f"it has {have} channels, not {channels}")


def channel_moments(image: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean of each channel, and that of its square, in [0, 1]; of large images every n-th pixel counts.

    Args:
        image: (C, H, W) uint8 or uint16.
    """
    _, height, width = image.shape
    stride = max(1, int((height * width / _STATISTICS_PIXELS) ** 0.5))
    highest = 2 ** (16 if image.dtype == torch.uint16 else 8) - 1
    shares = image[:, ::stride, ::stride].to(torch.float64).flatten(1) / highest
    return tuple(shares.mean(dim=1).tolist()), tuple(shares.square().mean(dim=1).tolist())


def image_facts(data: bytes, image: Tensor, pixels: Pixels, nodata: Nodata = None) -> ImageFacts:
    """Return what a decoded image adds to the dataset card.

    Mean and standard deviation of 8 and 16 bit intensities use every n-th pixel of large images. Those of the stored
    values, for images with more than 8 bits, use every pixel.

    Args:
        image: as it is read, without an alpha channel.
        pixels: as it was decoded.
        nodata: stored value of pixels without data; None: the value that the file names, if any.

    Raises:
        BrokenSample: if no pixel has data.
    """
    _, height, width = image.shape
    values = _value_stats(image, pixels, nodata)
    if values is not None and values.empty and (pixels.stored or nodata is not None):
        raise BrokenSample(ALL_MISSING)
    if pixels.stored:
        return ImageFacts(
            sniff(data) or "",
            8 * np.dtype(pixels.stored).itemsize,
            height,
            width,
            flat=values is not None and all(each.low == each.high for each in values.channels if each.count),
            values=values,
        )
    bits = 16 if image.dtype == torch.uint16 else 8
    means, squares = channel_moments(image)
    planes = image.numpy()
    return ImageFacts(
        sniff(data) or "",
        bits,
        height,
        width,
        means,
        squares,
        alpha=pixels.alpha,
        transparent=pixels.transparent,
        flat=all(plane.min() == plane.max() for plane in planes),
        values=values,
    )


def _value_stats(image: Tensor, pixels: Pixels, nodata: Nodata) -> ValueStats | None:
    """Return the statistics of the stored values of an image; None for 8 bits, and for those that are not stored so."""
    if image.dtype == torch.uint8 or pixels.inverted:
        return None
    if pixels.raw is not None:
        if pixels.alpha or len(pixels.raw) not in (1, len(image)):
            return None
        image = pixels.raw.expand(len(image), -1, -1)
    planes = image.numpy()
    return ValueStats.of(planes, missing_of(pixels, planes, nodata), pixels.stored or str(planes.dtype))


def read_reason(error: Exception) -> str:
    """Return why a decoder failed, in a few words."""
    text = _SOURCE_PLACE.sub("", str(error))
    if _ADDRESS.search(text):  # PIL: cannot identify image file <_io.BytesIO object at 0x7f...>
        return "its header is damaged, or the installed Pillow does not read this kind"
    return shorten(text, _LONGEST_REASON, placeholder=" ...") or type(error).__name__


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())  # a copy, as torch wants writable memory


def _jpeg(data: bytes, max_pixels: int) -> Pixels:
    image = decode_jpeg(_bytes_tensor(data))
    if image.shape[0] == 4:  # CMYK, inverted or not: PIL reads the markers that specify it
        return _pil(data, max_pixels)
    return Pixels(upright(image, orientation(data, "jpeg")))


def _png(data: bytes, _max_pixels: int) -> Pixels:
    """Decode all bit depths and palettes, with tRNS expanded to an alpha channel."""
    import imagecodecs

    check_png(data)
    array = imagecodecs.png_decode(data)
    array = array if array.ndim == 3 else array[..., None]
    alpha = array.shape[-1] in (2, 4)
    return Pixels(upright(from_numpy(array), orientation(data, "png")), alpha)


def _webp(data: bytes, max_pixels: int) -> Pixels:
    if data[12:16] == b"VP8X" and data[20] & _WEBP_NOT_PLAIN:
        return _pil(data, max_pixels)
    image = decode_webp(_bytes_tensor(data))
    return Pixels(image, alpha=image.shape[0] == 4)


def _pil(data: bytes, max_pixels: int) -> Pixels:
    from swinv2_train.data.pil_image import read_with_pil

    return read_with_pil(data, max_pixels)


def _npy(data: bytes, max_pixels: int) -> Pixels:
    from swinv2_train.data.array_image import read_npy

    return read_npy(data, max_pixels)


def _npz(data: bytes, max_pixels: int) -> Pixels:
    from swinv2_train.data.array_image import read_npz

    return read_npz(data, max_pixels)


def _tiff(data: bytes, max_pixels: int) -> Pixels:
    from swinv2_train.data.tiff import read_tiff

    return read_tiff(data, max_pixels)


_DECODERS: dict[str, Callable[[bytes, int], Pixels]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "tiff": _tiff,
    "bmp": _pil,
    "gif": _pil,
    "avif": _pil,
    "jp2": _pil,
    "npy": _npy,
    "npz": _npz,
}
