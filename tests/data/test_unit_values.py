"""Images of any type of values: read exactly, scaled, clipped, and filled."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import AugmentConfig, DataConfig
from swinv2_train.data.augment import eval_crop, normalise, random_erase, train_image
from swinv2_train.data.batch import collate
from swinv2_train.data.channel_statistics import resolve_statistics
from swinv2_train.data.decode import _DECODERS, DecodeOptions, decode, image_facts, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.mix import Mix, blend
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from tests.data.samples import encoded, pixels
from tests.data.scientific import geotiff, npy, npz, values

TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "uint32")


def options(scale: object, mean: tuple[float, ...] = (0.5,), **keys: object) -> DecodeOptions:
    return DecodeOptions.of(DataConfig(scale=scale, **keys), mean)


def unit(planes: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((planes.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


@pytest.mark.parametrize("dtype", [*TYPES, "uint16", "uint8"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_type_is_read_exactly_from_every_file(dtype: str, channels: int) -> None:
    planes = values(channels, channels, dtype)
    last = np.moveaxis(planes, 0, -1)
    files = [
        geotiff(planes),
        geotiff(planes, byteorder=">", compression="zlib", predictor=True),
        npy(planes),
        npy(np.asfortranarray(last)),
        npy(last.astype(last.dtype.newbyteorder(">"))),
        npz(only=planes),
        npz(image=last, other=np.zeros(3)),
    ]
    if channels == 1:
        files.append(npy(planes[0]))
    low, high = float(planes.min()) * 0.7, float(planes.max()) * 0.6
    for data in files:
        found = read_pixels(data)
        assert found.stored == ("" if dtype in ("uint8", "uint16") else dtype)
        assert (found.image.numpy().astype(np.float64) == planes.astype(np.float64)).all()
        scaled = decode(data, channels, options([low, high]))
        assert scaled.dtype == torch.float32
        assert (scaled.numpy() == unit(planes, low, high)).all()
        if found.stored:
            with pytest.raises(
                BrokenSample, match=rf"its samples are {dtype}: convert .* or set data\.scale to the range"
            ):
                decode(data, channels)
        else:
            assert decode(data, channels).numpy().tolist() == planes.tolist()


def test_channels_are_scaled_on_their_own_and_adapted_to_the_model() -> None:
    planes = values(0, 3, "int16")
    pairs = [[-100, 100], [0.5, 7], [-30000, 30000]]
    found = decode(geotiff(planes), 3, options(pairs))
    assert all((found[n].numpy() == unit(planes[n], *pair)).all() for n, pair in enumerate(pairs))
    repeated = decode(geotiff(planes[:1]), 3, options(pairs))
    assert all((repeated[n].numpy() == unit(planes[0], *pair)).all() for n, pair in enumerate(pairs))
    luma = decode(geotiff(planes), 1, options([-30000, 30000]))
    grey = planes.astype(np.float64).T @ np.array([0.299, 0.587, 0.114])
    assert luma[0].numpy() == pytest.approx(unit(grey.T, -30000, 30000), abs=1e-4)
    with pytest.raises(BrokenSample, match="it has 3 channels, not 4"):
        decode(geotiff(planes), 4, options([0, 1]))
    # Ordinary images are scaled as well, transparent ones after they were put on the background.
    photo = encoded(pixels(0), "PNG")
    assert (decode(photo, 3, options([0, 255])) * 255).round().to(torch.uint8).equal(decode(photo, 3))
    clear = encoded(np.dstack([pixels(0), np.zeros((24, 32), np.uint8)]), "PNG")
    assert decode(clear, 3, options([0, 255])).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("tag", "keys", "absent"),
    [
        (None, {}, []),
        ("-9999", {}, [-9999]),
        ("-3.4028234663852886e+38", {}, [-3.4028234663852886e38]),
        ("nan", {}, []),
        ("-9999", {"nodata": 5}, [5]),
        (None, {"nodata": [5, 6]}, [5, 6]),
    ],
)
def test_pixels_without_data_are_filled(tag: str | None, keys: dict[str, object], absent: list[float]) -> None:
    planes = values(0, 2, "float32")
    planes[:, 0, :3] = np.nan, np.inf, -np.inf
    planes[0, 1], planes[1, 1] = 5, 6
    planes[:, 2], planes[:, 3] = -9999, -3.4028235e38
    gone = ~np.isfinite(planes)
    for number, plane in enumerate(planes):
        own = absent[number : number + 1] if len(absent) == 2 else absent
        gone[number] |= np.isin(plane, np.float32(own))
    data = geotiff(planes, tag)
    expected = np.where(gone, 0.0, unit(np.where(gone, 0, planes), -50, 50))
    for fill, filled in (
        ("mean", (0.25, 0.75)),
        (0, (0.5, 0.5)),
        ([-25, 1e6], (0.25, 1.0)),
    ):
        found = decode(data, 2, options([-50, 50], (0.25, 0.75), fill=fill, **keys)).numpy()
        assert (found == np.where(gone, np.float32(filled)[:, None, None], expected.astype(np.float32))).all()
    missing = image_facts(data, read_pixels(data).image, read_pixels(data), absent if keys else None).values
    assert missing is not None
    assert [each.missing for each in missing.channels] == gone.sum((1, 2)).tolist()


def test_an_image_without_any_data_is_broken() -> None:
    empty = geotiff(np.full((1, 8, 8), np.nan, np.float32))
    with pytest.raises(BrokenSample, match="all of its pixels are missing"):
        decode(empty, 1, options([0, 1]))
    with pytest.raises(BrokenSample, match="all of its pixels are missing"):
        image_facts(empty, read_pixels(empty).image, read_pixels(empty))
    # Without an explicit value, 16-bit images are packed as in every earlier version.
    zeros = geotiff(np.zeros((1, 8, 8), np.uint16), "0")
    facts = image_facts(zeros, read_pixels(zeros).image, read_pixels(zeros))
    assert (facts.means, facts.flat) == ((0.0,), True)


def damaged_archive() -> bytes:
    data = bytearray(npz(only=np.arange(2000.0).reshape(40, 50)))
    data[200] ^= 0xFF
    return bytes(data)


def test_files_that_are_not_images_break_the_sample() -> None:
    objects = io.BytesIO()
    np.save(objects, np.array([[None]]), allow_pickle=True)
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme.txt", "none")
    for data, reason in (
        (npy(np.zeros(5)), r"npy: its shape \(5,\) is not that of an image"),
        (npy(np.zeros((4, 5, 4))), "whose first or last one, the channels, is the smaller"),
        (npy(np.zeros((4, 4), complex)), "npy: its values are complex128: convert"),
        (npy(np.zeros((4, 4), bool)), "npy: its values are bool: convert"),
        (npy(np.full((4, 4), 2**60)), r"int64 and above 2\*\*53"),
        (objects.getvalue(), "npy: its values are object"),
        (npy(np.zeros((4, 4)))[:-3], "npy: it ends 3 bytes too early"),
        (npy(np.zeros((0, 4))), "npy: the image is empty"),
        (npy(np.zeros((4, 4)))[:9], "npy: "),
        (npz(a=np.zeros((4, 4)), b=np.zeros((4, 4))), r"npz: it has 2 arrays \(a, b\): store one array, or call one"),
        (empty.getvalue(), r"npz: it has 0 arrays \(none\)"),
        (damaged_archive(), "npz: "),
        (geotiff(np.zeros((1, 4, 4), np.uint64) + 2**60), r"uint64 and above 2\*\*53"),
        (geotiff(np.zeros((1, 4, 4), np.complex64)), "its samples are complex64: convert"),
    ):
        with pytest.raises(BrokenSample, match=reason):
            decode(data, None, options([0, 1]))
    with pytest.raises(BrokenSample, match="above the limit of 10 pixels"):
        decode(npy(np.zeros((4, 4))), 1, DecodeOptions(max_pixels=10))


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_augmentations_work_on_any_number_of_channels(channels: int) -> None:
    data = npy(values(0, channels, "float32", 40, 50))
    sample = Sample(RawSample("key", "npy", {"image": data}), channels, options([-20, 20]))
    config = AugmentConfig(scale=[0.3, 1.0], hflip=1.0, vflip=1.0, interpolation="bicubic")
    for seed in range(3):
        image = train_image(sample, (16, 16), config, np.random.default_rng(seed))
        assert image.shape == (channels, 16, 16)
        assert 0 <= float(image.min()) < float(image.max()) <= 1  # the filter overshoots, and the result is clipped
        erased = random_erase(image, 1.0, [0.5] * channels, [0.1] * channels, np.random.default_rng(seed))
        changed = (erased != image).any(0)
        assert 0 < int(changed.sum()) < 256
        assert 0 <= float(erased.min()) <= float(erased.max()) <= 1
        assert len(erased[:, changed].unique()) > 3  # noise that is not rounded
        mixed = blend(image, erased, Mix(0.3))
        assert torch.allclose(mixed, 0.3 * image + 0.7 * erased)
        assert (blend(image, erased, Mix(0.5, (0, 0, 16, 16))) == erased).all()
    whole = eval_crop(sample.image, (16, 16), 0.875, "center", "bicubic")
    batch = collate([{"image": whole}, {"image": image}])["image"]
    kept = batch.clone()
    mean, std = torch.rand(channels), torch.rand(channels) + 0.1
    found = normalise(batch, mean.tolist(), std.tolist())
    assert torch.allclose(found, (batch - mean[:, None, None]) / std[:, None, None], atol=1e-5)
    assert (batch == kept).all()


def test_statistics_of_the_card_are_those_of_what_a_run_sees() -> None:
    from swinv2_train.data.card import Card
    from swinv2_train.data.value_range import fill_in_scale

    card, seen = Card(), []
    for seed in range(4):
        planes = values(seed, 2, "float32")
        planes[:, : seed + 1, 0] = np.nan
        data = geotiff(planes)
        card.add_image(image_facts(data, read_pixels(data).image, read_pixels(data)), len(data), None)
        seen.append(planes.reshape(2, -1))
    card = Card.merged([Card.from_json(card.to_json()), Card()])
    data = DataConfig(scale="p2-p98", mean="dataset", std="dataset")
    fill_in_scale(data, card, 2)
    stacked = np.concatenate(seen, axis=1).astype(np.float64)
    limits = np.nanpercentile(stacked, (2, 98), axis=1).T
    assert np.array(data.scale) == pytest.approx(limits, abs=0.5)
    mean, std = resolve_statistics(data, card, 2)
    clipped = np.clip((stacked - np.array(data.scale)[:, :1]) / np.ptp(np.array(data.scale), axis=1)[:, None], 0, 1)
    assert mean == pytest.approx(np.nanmean(clipped, axis=1), abs=1e-3)
    assert std == pytest.approx(np.nanstd(clipped, axis=1), abs=1e-3)
    wide = DataConfig(scale=[-1000, 1000], mean="dataset", std="dataset")
    mean, std = resolve_statistics(wide, card, 2)
    assert mean == pytest.approx(np.nanmean(stacked, axis=1) / 2000 + 0.5, rel=1e-12)
    assert std == pytest.approx(np.nanstd(stacked, axis=1) / 2000, rel=1e-12)
    ends = DataConfig(scale="p0-p100")
    fill_in_scale(ends, card, 2)
    assert ends.scale == [[row.min(), row.max()] for row in (each[~np.isnan(each)] for each in stacked)]


@pytest.mark.parametrize("bits", [4, 9, 12, 15])
def test_depths_below_those_of_the_type_are_scaled_from_the_stored_values(bits: int) -> None:
    top = 2**bits - 1
    planes = np.linspace(0, top, 2 * 20 * 30).reshape(2, 20, 30).astype(np.uint8 if bits <= 8 else np.uint16)
    planes[:, 0, 0] = 3
    data = geotiff(planes, "3", bitspersample=bits)
    found = read_pixels(data)
    expected = unit(planes, 0, top)
    absent = planes == 3
    scaled = decode(data, 2, options([0, top], fill=0)).numpy()
    assert (scaled == np.where(absent, 0, expected)).all()
    facts = image_facts(data, decode(data), found)
    assert facts.means == pytest.approx([float(plane.mean()) / top for plane in planes], abs=0.1 / bits)
    if bits > 8:
        assert facts.values is not None
        assert [(each.high, each.missing) for each in facts.values.channels] == [
            (float(plane[plane != 3].max()), int((plane == 3).sum())) for plane in planes
        ]


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_inverted_samples_have_no_stored_values(bits: int) -> None:
    import tifffile

    planes = values(0, 1, "uint8" if bits == 8 else "uint16")[0] >> (-bits % 8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, photometric="miniswhite", bitspersample=bits, metadata=None)
    data = buffer.getvalue()
    assert image_facts(data, decode(data), read_pixels(data)).values is None
    with pytest.raises(BrokenSample, match=r"inverted \(MINISWHITE\), and data.scale is set: convert to MINISBLACK"):
        decode(data, 1, options([0, 255]))


def test_a_card_that_knows_the_values_of_some_images_only_gives_no_statistics() -> None:
    from swinv2_train.data.card import Card
    from swinv2_train.data.value_range import fill_in_scale

    card = Card()
    for kind in ("uint16", "uint8", "uint8"):
        data = geotiff(values(0, 1, kind))
        card.add_image(image_facts(data, decode(data), read_pixels(data)), len(data), None)
    card = Card.from_json(card.to_json())
    for channels in (1, 3):
        sentence = f"has the values of only 1 of 3 {channels}-channel images"
        with pytest.raises(ConfigError, match=f"data.scale=p1-p99: .*{sentence}"):
            fill_in_scale(DataConfig(scale="p1-p99"), card, channels)
        with pytest.raises(ConfigError, match=f"data.std=dataset: .*{sentence}"):
            resolve_statistics(DataConfig(scale=[0, 9], mean=[0.5] * channels, std="dataset"), card, channels)
    assert card.statistics(1) is not None


def test_own_decoders_return_any_real_numbers() -> None:
    from swinv2_train.config import own_parts

    own_parts.register(
        "own_values", (own_parts.Plugin(decoders={"ffi": own_parts.Decoder(b"FFI", f"{__name__}:read_ffi")}),)
    )
    try:
        for dtype in ("int16", "float32", "uint16"):
            planes = values(1, 2, dtype)
            data = b"FFI" + npy(np.moveaxis(planes, 0, -1))
            assert (decode(data, 2, options([-20, 20])).numpy() == unit(planes, -20, 20)).all()
            if dtype != "uint16":
                with pytest.raises(BrokenSample, match=f"ffi: its samples are {dtype}: .* data.scale"):
                    decode(data, 2)
        for wrong, reason in ((np.zeros(3), "returned 3, not an array"), (np.zeros((2, 2), complex), "complex128")):
            with pytest.raises(BrokenSample, match=reason):
                decode(b"FFI" + npy(wrong), 2)
        assert set(_DECODERS) <= set(own_parts._TAKEN_EXTENSIONS)  # a decoder of such a name would never be used
    finally:
        del own_parts._plugins["own_values"]
        own_parts.function_of.cache_clear()


def read_ffi(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data[3:]))
