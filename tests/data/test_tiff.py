from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile

from swinv2_train.data.decode import decode
from swinv2_train.data.errors import BrokenSample
from tests.data.samples import encoded, pixels
from tests.data.test_decode import tiff

PHOTO = pixels(1)


def pages(*images: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for image, options in images:
            writer.write(image, **({"photometric": "rgb", "metadata": None} | options))
    return buffer.getvalue()


def read(data: bytes, channels: int | None = None) -> np.ndarray:
    return decode(data, channels).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_every_depth_has_the_full_range(bits: int, photometric: str) -> None:
    dtype = np.uint8 if bits <= 8 else np.uint16
    largest, full = 2**bits - 1, np.iinfo(dtype).max
    values = np.linspace(0, largest, 16 * 24 * (3 if photometric == "rgb" else 1)).astype(dtype)
    values = values.reshape((16, 24, 3) if photometric == "rgb" else (16, 24))
    found = read(tiff(values, bitspersample=bits, photometric=photometric))
    seen = largest - values.astype(int) if photometric == "miniswhite" else values.astype(int)
    assert found.dtype == dtype
    assert (found.squeeze() == np.rint(seen / largest * full)).all()
    assert (found.min(), found.max()) == (0, full)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_ycbcr_becomes_rgb_under_every_compression(compression: str | None) -> None:
    from PIL import Image

    planes = np.array(Image.fromarray(PHOTO).convert("YCbCr"))
    found = read(tiff(planes, photometric="ycbcr", compression=compression))
    assert np.abs(found.astype(int) - PHOTO).max() <= 4
    jpeg = read(encoded(PHOTO, "TIFF", compression="jpeg", quality=95))
    assert np.abs(jpeg.astype(int) - PHOTO).mean() <= 12


def test_thumbnails_and_masks_are_skipped() -> None:
    small, mask = PHOTO[::4, ::4].copy(), PHOTO[..., 0] > 99
    thumbnail, image = (small, {"subfiletype": 1}), (PHOTO, {})
    for data in (
        pages(thumbnail, image),
        pages(image, thumbnail),
        pages((mask, {"photometric": "mask", "subfiletype": 4}), image),
        pages(image, (small, {})),
    ):
        assert (read(data) == PHOTO).all()
    assert (read(pages(thumbnail)) == small).all()  # there is nothing else
    colormap = np.random.default_rng(0).integers(0, 65535, (3, 256)).astype(np.uint16)
    palette = {"photometric": "palette", "colormap": colormap}
    data = pages((small[..., 0].copy(), palette | {"subfiletype": 1}), (PHOTO[..., 0].copy(), palette))
    assert read(data).shape == PHOTO.shape


def test_pages_of_one_shape_are_channels() -> None:
    planes = np.moveaxis(pixels(2, channels=5), -1, 0).copy()
    assert (
        read(pages(*((plane, {"photometric": "minisblack"}) for plane in planes)), 5) == np.moveaxis(planes, 0, -1)
    ).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(PHOTO, photometric="cielab"), "CIELAB is not read: convert to gray or RGB"),
        (tiff(PHOTO, photometric="logluv"), "LOGLUV is not read: convert to gray or RGB"),
        (tiff(PHOTO.astype(np.uint16), photometric="ycbcr"), "YCbCr of 16 bits is not read"),
        (pages((PHOTO, {}), (PHOTO, {})), "is not an image with channels"),
    ],
)
def test_what_is_not_read_is_refused_with_a_remedy(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenSample, match=f"^tiff: .*{reason}"):
        decode(data, 3)


def test_missing_strips_are_not_filled_with_zeros() -> None:
    data = bytearray(tiff(PHOTO, photometric="rgb", rowsperstrip=6))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag = file.pages[0].tags[273]
        assert tag.count == 4
        data[tag.offset + 4 : tag.offset + 8] = (2).to_bytes(4, "little")
    with pytest.raises(BrokenSample, match="tiff: "):
        decode(bytes(data))


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}])
def test_pages_that_form_a_circle_are_refused(options: dict[str, Any]) -> None:
    data = bytearray(tiff(PHOTO, photometric="rgb", metadata=None, **options))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        size, first = 8 if file.is_bigtiff else 4, file.pages[0].offset
        order = "big" if file.byteorder == ">" else "little"
    end = first + (8 if size == 8 else 2)
    entries = int.from_bytes(data[first:end], order)
    place = end + entries * (20 if size == 8 else 12)
    assert int.from_bytes(data[place : place + size], order) == 0
    data[place : place + size] = first.to_bytes(size, order)
    with pytest.raises(BrokenSample, match="its pages form a circle"):
        decode(bytes(data))
