from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.config.errors import ConfigError
from swinv2_train.data.background import background_color, flatten, resize_transparent
from swinv2_train.data.decode import DecodeOptions, decode, image_facts, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.pack import pack
from swinv2_train.data.pack_writer import PackOptions
from swinv2_train.data.shards import ShardSet
from tests.data.samples import encoded, pixels
from tests.data.test_decode import tiff

RGBA = pixels(3, channels=4)
LOGO = np.concatenate([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 1), np.uint8)], axis=2)
LOGO[2:6, 2:6, 3] = 255  # a black square on nothing


def on(data: bytes, background: Any, channels: int | None = 3) -> np.ndarray:
    options = DecodeOptions(background_color(background, (0.2, 0.4, 0.6)))
    return decode(data, channels, options).permute(1, 2, 0).numpy()


def expected(rgba: np.ndarray, color: list[float], largest: int = 255) -> np.ndarray:
    share = rgba[..., 3:] / largest
    return np.rint(rgba[..., :3] * share + np.rint(np.array(color) * largest) * (1 - share))


@pytest.mark.parametrize(
    ("background", "color"),
    [("white", [1, 1, 1]), (None, [1, 1, 1]), ("black", [0, 0, 0]), ("mean", [0.2, 0.4, 0.6]), ([0.5], [0.5] * 3)],
)
@pytest.mark.parametrize("kind", ["png", "png16", "webp", "tiff", "tiff premultiplied", "avif"])
def test_transparent_images_are_put_on_the_background(kind: str, background: Any, color: list[float]) -> None:
    rgba, largest, error = RGBA, 255, 0.5
    if kind == "png16":
        rgba, largest = pixels(3, channels=4, dtype=np.uint16), 65535
        data = imagecodecs.png_encode(rgba)
    elif kind == "tiff premultiplied":
        stored = rgba.copy()
        stored[..., :3] = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255))
        data, error = tiff(stored, photometric="rgb", extrasamples=["assocalpha"]), 1.01
    elif kind == "tiff":
        data = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    elif kind == "avif":
        data, error = encoded(rgba, "AVIF", quality=100, subsampling="4:4:4"), 4
    else:
        data = encoded(rgba, kind.upper(), **({"lossless": True, "exact": True} if kind == "webp" else {}))
    found = on(data, background)
    assert found.dtype == rgba.dtype
    assert np.abs(found - expected(rgba, color, largest)).max() <= error


def test_a_black_logo_is_one_black_square_no_longer() -> None:
    data = encoded(LOGO, "PNG")
    facts = {name: image_facts(data, decode(data, None, DecodeOptions(color)), read_pixels(data)) for name, color in
             (("white", (1.0,)), ("drop", None))}  # fmt: skip
    assert (facts["white"].alpha, facts["white"].transparent, facts["white"].flat) == (True, True, False)
    assert facts["drop"].flat
    assert on(data, "white")[0, 0].tolist() == [255] * 3
    assert on(data, "white")[3, 3].tolist() == [0] * 3
    assert (on(data, "drop") == 0).all()
    assert (on(data, "white", 4) == LOGO).all()  # four channels: alpha is data


@pytest.mark.parametrize("mode", ["palette PNG", "gray PNG", "GIF", "gray and alpha", "color key", "16 bit color key"])
def test_every_kind_of_transparency_is_seen(mode: str) -> None:
    if mode in ("palette PNG", "GIF"):
        picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
        picture.putpalette([10, 20, 30, 40, 50, 60])
        data = encoded_picture(picture, "PNG" if mode == "palette PNG" else "GIF", transparency=1)
        shown = [10, 20, 30]
    elif mode in ("gray PNG", "gray and alpha"):
        gray = np.array([[7, 9], [9, 7]], np.uint8)
        alpha = np.where(gray == 9, 0, 255).astype(np.uint8)
        picture = Image.fromarray(gray)
        if mode == "gray PNG":
            data = encoded_picture(picture, "PNG", transparency=9)
        else:
            data = encoded_picture(Image.merge("LA", (picture, Image.fromarray(alpha))), "PNG")
        shown = [7, 7, 7]
    else:
        color = np.array([[[1, 2, 3], [4, 5, 6]], [[4, 5, 6], [1, 2, 3]]], np.uint8)
        data, shown = encoded_picture(Image.fromarray(color), "PNG", transparency=(4, 5, 6)), [1, 2, 3]
        if mode == "16 bit color key":
            pytest.importorskip("imagecodecs")
            data, shown = sixteen_bit_key(color), [257, 514, 771]
    largest = 65535 if mode == "16 bit color key" else 255
    found = on(data, "white")
    assert found.tolist() == [[shown, [largest] * 3], [[largest] * 3, shown]]
    assert read_pixels(data).transparent


def encoded_picture(picture: Image.Image, kind: str, **options: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bit_key(color: np.ndarray) -> bytes:
    """A 16 bit RGB PNG whose color (4, 5, 6) / 255 is transparent."""
    import struct
    import zlib

    data = imagecodecs.png_encode(color.astype(np.uint16) * 257)
    body = b"tRNS" + struct.pack(">HHH", 4 * 257, 5 * 257, 6 * 257)
    place = data.index(b"IDAT") - 4
    return data[:place] + struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body)) + data[place:]


def test_opaque_images_are_the_same_on_every_background() -> None:
    opaque = RGBA.copy()
    opaque[..., 3] = 255
    for kind in ("PNG", "WEBP"):
        data = encoded(opaque, kind, **({"lossless": True} if kind == "WEBP" else {}))
        for background in ("white", "black", "drop", [0.1, 0.2, 0.3]):
            assert (on(data, background) == opaque[..., :3]).all()
        assert read_pixels(data).alpha == (kind == "PNG")  # libwebp drops an alpha channel that is opaque
        assert not read_pixels(data).transparent


def test_colors_that_do_not_fit() -> None:
    gray = encoded(np.array(Image.fromarray(RGBA).convert("LA")), "PNG")
    assert on(gray, [0.1, 0.2, 0.3], None).shape[-1] == 3  # a gray image on a color is a color image
    assert on(gray, "black", 1).shape[-1] == 1
    with pytest.raises(BrokenSample, match="3 color channels and alpha, the background 2 values"):
        on(encoded(RGBA, "PNG"), [0.1, 0.2])
    for value in ("red", [2], [], [-0.1], 3, ["a"]):
        with pytest.raises(ConfigError, match=r"data\.background"):
            background_color(value, ())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_shrinking_keeps_the_color_of_what_is_seen(dtype: torch.dtype, premultiplied: bool) -> None:
    largest = 255 if dtype == torch.uint8 else 65535
    image = torch.zeros(4, 16, 16, dtype=torch.int32)
    image[0, :, 8:], image[3, :, 8:] = largest, largest  # red on the right; transparent black on the left
    small = resize_transparent(image.to(dtype), (4, 4), premultiplied=premultiplied)
    seen = small[3].numpy() > largest // 50
    assert small.dtype == dtype
    assert (small[0].numpy()[seen] >= largest - largest // 20).all()  # no black fringe
    white = flatten(small, (1.0,)).numpy()
    assert (white[:, :, 0] >= largest - largest // 20).all()


@pytest.mark.parametrize(
    ("background", "channels", "stored", "alpha"),
    [("white", None, 4, True), ("white", 4, 4, True), ("drop", None, 3, False), ("drop", 4, 4, True)],
)
def test_shrunk_images_keep_what_is_read_of_them(
    tmp_path: Path, background: str, channels: int | None, stored: int, alpha: bool
) -> None:
    """With `drop` the colors of transparent pixels count; with four channels alpha does, and stays known as alpha."""
    hidden = np.full((16, 16, 4), (200, 10, 30, 0), np.uint8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(hidden, "PNG"))
    options = PackOptions(resize=8, background=background, channels=channels)
    card = pack(str(tmp_path / "in"), tmp_path / "out", options).cards["train"]
    assert (card.alpha, card.transparent) == (alpha, alpha)
    found = read_pixels(ShardSet.open(str(tmp_path / "out")).read(0).data)
    assert (found.image.shape, found.alpha) == ((stored, 8, 8), alpha)
    if background == "drop" or channels == 4:
        assert np.abs(found.image[:3].numpy() - np.array([200, 10, 30])[:, None, None]).max() <= 3  # JPEG
