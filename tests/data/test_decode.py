from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from swinv2_train.data.decode import DecodeOptions, decode, image_facts, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_header import sniff
from tests.data.samples import encoded, jpeg, pixels


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


DROP = DecodeOptions(background=None)


def as_numpy(data: bytes, channels: int | None = None, options: DecodeOptions | None = None) -> np.ndarray:
    return decode(data, channels, options).permute(1, 2, 0).numpy()


def by_pil(data: bytes, mode: str) -> np.ndarray:
    image = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode))
    return image if image.ndim == 3 else image[..., None]


PHOTO = pixels(1)
GREY = pixels(2, channels=1)
RGBA = np.concatenate([PHOTO, GREY], axis=2)


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (encoded(PHOTO), "RGB"),
        (encoded(PHOTO, progressive=True), "RGB"),
        (encoded(GREY), "L"),
        (encoded(PHOTO, mode="CMYK"), "RGB"),
        (encoded(PHOTO, "PNG"), "RGB"),
        (encoded(GREY, "PNG"), "L"),
        (encoded(GREY, "PNG", mode="1"), "L"),
        (encoded(PHOTO, "PNG", mode="P"), "RGB"),
        (encoded(PHOTO, "PNG", mode="P", transparency=3), "RGB"),
        (encoded(PHOTO, "WEBP", lossless=True), "RGB"),
        (encoded(PHOTO, "WEBP", quality=80), "RGB"),
        (encoded(PHOTO, "TIFF"), "RGB"),
        (encoded(PHOTO, "TIFF", compression="tiff_lzw"), "RGB"),
        (encoded(PHOTO, "TIFF", compression="jpeg", quality=95), "RGB"),
        (encoded(PHOTO, "TIFF", mode="P"), "RGB"),
        (encoded(PHOTO, "TIFF", mode="CMYK"), "RGB"),
        (encoded(GREY, "TIFF", mode="1"), "L"),
    ],
)
def test_pixels_are_those_of_pil(data: bytes, mode: str) -> None:
    found = as_numpy(data)
    expected = by_pil(data, mode)
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    # lossy WebP and JPEG inside TIFF may be rounded otherwise by another build of the same library
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_pixels_of_jpeg_and_png_are_exactly_those_of_pil() -> None:
    for data in (jpeg(3, height=61, width=47), encoded(PHOTO, "PNG")):
        assert (as_numpy(data) == by_pil(data, "RGB")).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(PHOTO, kind, exif=exif.tobytes() if kind != "TIFF" else exif)
    found, expected = as_numpy(data), by_pil(data, "RGB")
    assert found.shape == expected.shape == ((24, 32, 3) if orientation < 5 else (32, 24, 3))
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png(channels: int) -> None:
    array = pixels(4, channels=channels, dtype=np.uint16)
    image = decode(imagecodecs.png_encode(array if channels > 1 else array[..., 0]), channels)
    assert image.dtype == torch.uint16
    assert (image.permute(1, 2, 0).numpy() == array).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 5, 13])
@pytest.mark.parametrize(
    "layout",
    [
        {"planarconfig": "contig"},
        {"planarconfig": "separate"},
        {"planarconfig": "contig", "compression": "lzw", "predictor": True},
        {"planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
        {"byteorder": ">", "planarconfig": "contig"},
        {"pages": True},
    ],
    ids=lambda layout: "-".join(f"{k}:{v}" for k, v in layout.items()),
)
def test_tiff_with_any_number_of_channels(dtype: type, channels: int, layout: dict[str, Any]) -> None:
    array = pixels(5, channels=channels, dtype=dtype)
    options = dict(layout)
    planar = np.moveaxis(array, -1, 0)
    if channels == 1:
        options.pop("planarconfig", None)
        options.pop("pages", None)
        data = tiff(array[..., 0], photometric="minisblack", **options)
    elif options.pop("pages", False) or options.get("planarconfig") == "separate":
        data = tiff(planar, photometric="minisblack", **options)
    else:
        data = tiff(array, photometric="minisblack", **options)
    image = decode(data, channels)
    assert image.dtype == {np.uint8: torch.uint8, np.uint16: torch.uint16}[dtype]
    assert (image.permute(1, 2, 0).numpy() == array).all()


def test_tiff_white_is_zero_and_alpha() -> None:
    assert (as_numpy(tiff(255 - GREY[..., 0], photometric="miniswhite")) == GREY).all()
    data = tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"])
    assert (as_numpy(data, 3, DROP) == PHOTO).all()
    infrared = tiff(RGBA, photometric="rgb", extrasamples=["unspecified"])
    assert (as_numpy(infrared, 4) == RGBA).all()
    with pytest.raises(BrokenSample, match="4 channels, not 3"):
        decode(infrared, 3)  # a fourth band other than alpha is not dropped silently


def test_channels_are_adapted_where_that_is_harmless() -> None:
    assert (as_numpy(encoded(GREY, "PNG"), 3) == np.repeat(GREY, 3, axis=2)).all()
    for kind in ("PNG", "WEBP"):
        data = encoded(RGBA, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        assert (as_numpy(data, 3, DROP) == PHOTO).all()
        assert (as_numpy(data, None, DROP) == PHOTO).all()
        assert (as_numpy(data, 4) == RGBA).all()
    assert (as_numpy(encoded(PHOTO, "PNG"), 1) == by_pil(encoded(PHOTO, "PNG"), "L")).all()
    grey_alpha = encoded(np.array(Image.fromarray(RGBA).convert("LA")), "PNG")
    assert decode(grey_alpha, 3).shape == (3, 24, 32)
    wide = imagecodecs.png_encode(pixels(4, dtype=np.uint16))
    assert decode(wide, 1).dtype == torch.uint16


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (b"", 3, "it is empty"),
        (b"GIF89a" + bytes(50), 3, "gif: "),
        (b"%PDF-1.7", 3, "not a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, or JPEG 2000 image"),
        (jpeg(1)[:300], 3, "jpeg: "),
        (encoded(PHOTO, "PNG")[:300], 3, "png: "),
        (encoded(PHOTO, "PNG")[:20], 3, "png: "),
        (encoded(PHOTO, "PNG", mode="P")[:900], 3, "png: "),
        (encoded(PHOTO, "WEBP")[:100], 3, "webp: "),
        (tiff(PHOTO)[:300], 3, "tiff: "),
        (tiff(PHOTO, compression="zlib")[:-900], 3, "tiff: "),
        (b"II*\0" + bytes(30), 3, "tiff: "),
        (tiff(PHOTO.astype(np.float32)), 3, "samples are float32: convert to 8 or 16 bit"),
        (tiff(PHOTO.astype(np.int16)), 3, "samples are int16: convert"),
        (tiff(np.stack([PHOTO, PHOTO])), 3, "not an image with channels"),
        (tiff(np.moveaxis(pixels(1, channels=5), -1, 0), photometric="minisblack"), 3, "5 channels, not 3"),
        (encoded(PHOTO), 5, "3 channels, not 5"),
        (encoded(GREY), 2, "1 channels, not 2"),
    ],
)
def test_what_cannot_be_read_is_broken_and_says_why(data: bytes, channels: int, reason: str) -> None:
    with pytest.raises(BrokenSample, match=reason) as caught:
        decode(data, channels)
    assert "/" not in caught.value.reason  # no source paths of the decoder
    assert "\n" not in caught.value.reason


def test_the_bytes_decide_not_the_name() -> None:
    assert [sniff(encoded(PHOTO, kind)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")] == ["jpeg", "png", "webp", "tiff"]
    assert (sniff(b"\x93NUMPY"), sniff(b"PK\x03\x04"), sniff(b"\x94NUMPY")) == ("npy", "npz", None)


def test_image_facts() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10, 0] = 255
    data = encoded(image, "PNG")
    facts = image_facts(data, decode(data), read_pixels(data))
    assert (facts.format, facts.bits, facts.height, facts.width) == ("png", 8, 10, 20)
    assert facts.means == (0.5, 0.0, 0.0)
    assert facts.squares == (0.5, 0.0, 0.0)
    wide = imagecodecs.png_encode(np.full((4, 4), 65535, np.uint16))
    assert image_facts(wide, decode(wide), read_pixels(wide)).means == (1.0,)
