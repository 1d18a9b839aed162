"""Large images are cut into tiles with their label maps: every pixel is in one, and parts of a TIFF are its pixels."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from swinv2_train.data.decode import DecodeOptions, decode, read_pixels
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.pack import PackOptions, PackReport, PackRun, pack
from swinv2_train.data.pack_entries import counted_problems, grouped, problem_name
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.pixels import upright
from swinv2_train.data.scene import LabelScene, Scene, scene_orientation, scene_size
from swinv2_train.data.tiff_region import TiffRegions
from swinv2_train.data.tiling import Tiling
from swinv2_train.data.value_range import ValueRange
from tests.data.label_maps import NAMES, labels, png, tiff
from tests.data.packed import open_set, tars
from tests.data.samples import encoded, pixels
from tests.data.test_pack_label_maps import maps_of

TILED = PackOptions(tile=Tiling(64, 16))
RULES = LabelRules(NAMES, 255)


def scene(height: int, width: int, channels: int, dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(height + width + channels)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(height, width, channels)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype)


def cut(images: Path, out: Path, options: PackOptions = TILED, maps: Path | None = None, **how: Any) -> PackReport:
    given = None if maps is None else LabelMaps(str(maps), RULES)
    return pack(open_source(str(images), classes=False, seed=0, out=out, labels=given), out, options, **how)


def place(key: str) -> tuple[int, int]:
    """Top and left of a tile by its key."""
    _, top, left = key.rsplit("_", 2)
    return int(top[1:]), int(left[1:])


@pytest.mark.parametrize("length", [1, 63, 64, 65, 112, 113, 200, 1000])
def test_tiles_cover_every_pixel_and_stay_inside(length: int) -> None:
    boxes = TILED.tile.boxes(length, 10) if TILED.tile else []
    assert {box[1:] for box in boxes} == {(0, min(64, length), 10)}
    tops = [box[0] for box in boxes]
    assert tops == sorted(set(tops))
    assert (tops[0], tops[-1] + min(64, length)) == (0, length)
    assert all(64 - 16 >= later - earlier > 0 for earlier, later in itertools.pairwise(tops))


LAYOUTS: dict[str, tuple[tuple[int, int, int, Any], dict[str, Any]]] = {
    "tiles, 4 channels of 16 bits": ((150, 170, 4, np.uint16), {"tile": (32, 48), "compression": "zlib"}),
    "strips, 4 channels of 16 bits": ((150, 170, 4, np.uint16), {"rowsperstrip": 7, "compression": "lzw"}),
    "one strip, not compressed": ((150, 170, 3, np.uint8), {"photometric": "rgb"}),
    "big-endian": ((150, 170, 3, np.uint16), {"byteorder": ">", "photometric": "rgb"}),
    "planes in strips": ((150, 170, 5, np.uint16), {"planarconfig": "separate", "rowsperstrip": 9}),
    "planes in tiles": ((150, 170, 5, np.int16), {"planarconfig": "separate", "tile": (64, 16), "compression": "zlib"}),
    "floats with a predictor": ((150, 170, 2, np.float32), {"tile": (32, 32), "compression": "zlib", "predictor": 3}),
    "integers with a predictor": ((150, 170, 1, np.uint16), {"tile": (32, 32), "compression": "zlib", "predictor": 2}),
    "a page per channel": ((150, 170, 3, np.float64), {"pages": True}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_tiff_are_its_pixels(layout: str, tmp_path: Path) -> None:
    """Stored in any way, and the tile that is packed decodes to the same pixels as the entire image does."""
    (height, width, channels, dtype), options = LAYOUTS[layout]
    image = scene(height, width, channels, dtype)
    planar = options.get("planarconfig") == "separate" or options.pop("pages", False)
    if channels > 1 and not planar:
        options = options | {"planarconfig": "contig"}
    array = np.moveaxis(image, -1, 0) if planar else image if channels > 1 else image[..., 0]
    path = tmp_path / "scene.tif"
    path.write_bytes(tiff(array, **options, extratags=[(42113, "s", 0, "-9999.25", True)]))
    whole = read_pixels(path.read_bytes())
    assert scene_size(path, 10**9) == (height, width)
    opened = Scene(path, 64 * 64 * 2, 92)  # the limit is for a tile, not for the scene
    for box in ((0, 0, 64, 64), (86, 106, 64, 64), (31, 47, 34, 2), (149, 169, 1, 1)):
        top, left, tall, wide = box
        found = read_pixels(opened.tile(box))
        expected = whole.image[:, top : top + tall, left : left + wide]
        assert (found.image.dtype, found.stored, found.nodata) == (whole.image.dtype, whole.stored, whole.nodata)
        assert found.image.numpy().tobytes() == expected.contiguous().numpy().tobytes()
    opened.close()


def test_scenes_of_other_formats_are_cut_after_decoding(tmp_path: Path) -> None:
    """JPEG, PNG with transparency, arrays, palettes, and depths that a TIFF scales."""
    rgba = np.dstack([pixels(1, 90, 100), np.full((90, 100), 255, np.uint8)])
    rgba[:50, :, 3] = 7
    buffer = io.BytesIO()
    np.save(buffer, scene(90, 100, 3, np.float32))
    turn, nodata = (274, "H", 1, 3, True), (42113, "s", 0, "7", True)
    few = pixels(0, 90, 100, 4, np.uint16) >> 4
    alpha = {"photometric": "rgb", "planarconfig": "contig", "extrasamples": ["assocalpha"]}
    files = {
        "jpeg": encoded(pixels(0, 90, 100), quality=95),
        "png": png(rgba),
        "npy": buffer.getvalue(),
        "tiff of floats": tiff(scene(90, 100, 1, np.float32)[..., 0], extratags=[turn]),
        "tiff of 16 bits": tiff(few[..., 0], extratags=[turn, nodata]),
        "tiff of 12 bits": tiff(few[..., 0], bitspersample=12, extratags=[nodata]),
        "tiff of 12 bits, 4 bands": tiff(few, bitspersample=12, planarconfig="contig"),
        "tiff of 12 bits, alpha": tiff(few, bitspersample=12, **alpha),
        "tiff of 1 bit": tiff(few[..., 0] > 2000),
        "inverted tiff": tiff(few[..., 0], photometric="miniswhite"),
        "turned alpha": tiff(few, extratags=[turn], **alpha),
    }
    kept = ("alpha", "premultiplied", "stored", "nodata", "depth", "inverted")
    for kind, data in files.items():
        whole = read_pixels(data)
        opened = Scene(data, 10**6, 95)
        found = read_pixels(opened.tile((26, 36, 64, 64)))
        expected = whole.image[:, 26:, 36:]
        assert found.image.dtype == whole.image.dtype
        for name in kept:
            assert getattr(found, name) == getattr(whole, name), (kind, name)
        assert (found.raw is None) == (whole.raw is None)
        if found.raw is not None and whole.raw is not None:
            assert (found.raw.numpy() == whole.raw.numpy()[:, 26:, 36:]).all(), kind
        difference = found.image.double() - expected.double()
        assert difference.abs().max() <= (12 if kind == "jpeg" else 0), kind
        assert scene_size(data, 10**6) == (90, 100)
        with pytest.raises(BrokenSample, match="100 x 90 is above the limit of 100 pixels"):
            Scene(data, 100, 95)


def test_tiles_have_the_values_of_the_entire_image_for_data_scale(tmp_path: Path) -> None:
    """A camera with 12 bits: packed whole or as tiles, its card and its training images are the same."""
    stored = scene(60, 100, 1, np.uint16)[..., 0] >> 4
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.tif").write_bytes(tiff(stored, bitspersample=12))
    cards, images = [], []
    for name, tiling in (("whole", None), ("tiles", Tiling(64))):
        report = cut(tmp_path / "images", tmp_path / name, PackOptions(tile=tiling))
        shards = open_set(tmp_path / name)
        cards.append(report.cards["train"].values_of(1))
        for options in (DecodeOptions(values=ValueRange(((100.0, 4095.0),), (0.0,))), DecodeOptions()):
            parts = {shards.key(n): decode(shards.read(n).data, 1, options) for n in range(shards.num_samples)}
            joined = np.zeros((1, 60, 100), np.float64)
            for key, part in parts.items():
                top, left = place(key) if tiling else (0, 0)
                joined[:, top:, left : left + part.shape[2]] = part.numpy()
            images.append(joined)
    assert all((one == two).all() for one, two in zip(images[:2], images[2:], strict=True))
    assert [max(each.high for each in card.channels) for card in cards if card] == [stored.max()] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_maps_follow_their_turned_scene(orientation: int) -> None:
    """In the orientation of the stored pixels or upright, read in parts or decoded: as for images packed whole."""
    stored = labels(3, 40, 70)
    image = tiff(stored, extratags=[(274, "H", 1, orientation, True)])
    assert scene_orientation(image) == orientation
    size = scene_size(image, 10**6)
    expected = upright(torch.from_numpy(stored)[None], orientation)[0].numpy()
    if orientation < 5:
        expected = stored  # of the same size, so it is taken to be upright
    for array in (stored, expected):
        for data in (tiff(array.copy(), tile=(16, 16)), png(array)):
            opened = LabelScene(data, RULES, 10**6, size, orientation)
            for box in ((0, 0, 16, 16), (5, 9, 30, 21)):
                top, left, tall, wide = box
                assert (opened.tile(box) == expected[top : top + tall, left : left + wide]).all()
    for wrong in (stored[:-1], np.ascontiguousarray(stored.T) if orientation == 1 else stored[:, 1:]):
        with pytest.raises(BrokenSample, match="both must have the same size"):
            LabelScene(png(wrong), RULES, 10**6, size, orientation)


@pytest.mark.slow
def test_scenes_are_packed_with_their_label_maps(tmp_path: Path) -> None:
    """Names have the place, tiles of one scene are neighbors on one side of the split, and small images stay whole."""
    images, maps = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    maps.mkdir()
    stored, classes = {}, {}
    for number in range(6):
        size = (40, 60) if number == 5 else (150, 120 + number)
        stored[f"s{number}"] = scene(*size, 4, np.uint16)
        classes[f"s{number}"] = labels(number, *size)
        (images / f"s{number}.tif").write_bytes(tiff(stored[f"s{number}"], planarconfig="contig", tile=(32, 32)))
        written = png if number % 2 else lambda array: tiff(array, tile=(16, 16), compression="zlib")
        (maps / f"s{number}.{'png' if number % 2 else 'tif'}").write_bytes(written(classes[f"s{number}"]))
    report = cut(images, tmp_path / "one", maps=maps, eval_share=0.4)
    assert report.complete
    cut(images, tmp_path / "two", maps=maps, eval_share=0.4, how=PackRun(workers=2))
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    again = cut(images, tmp_path / "two", maps=maps, eval_share=0.4)
    assert (again.num_reused, again.num_shards) == (report.num_shards, report.num_shards)
    sides = []
    for split in report.cards:
        shards = open_set(tmp_path / "one", f"{split}-*.tar")
        keys = [shards.key(index) for index in range(shards.num_samples)]
        scenes = [key.split("_")[0] for key in keys]
        assert scenes == sorted(scenes, key=scenes.index)
        sides.append(set(scenes))
        for index, (key, name) in enumerate(zip(keys, scenes, strict=True)):
            top, left = place(key) if "_" in key else (0, 0)
            image = read_pixels(shards.read(index).data).image.permute(1, 2, 0).numpy()
            box = slice(top, top + 64), slice(left, left + 64)
            assert image.tobytes() == stored[name][box].tobytes()
            assert maps_of(shards)[key].tolist() == classes[name][box].tolist()
        if "s5" in scenes:
            assert shards.read(keys.index("s5")).data == (images / "s5.tif").read_bytes()
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(stored)
    other = cut(images, tmp_path / "two", replace(TILED, tile=Tiling(64, 8)), maps, eval_share=0.4)
    assert other.num_reused == 0


def test_empty_tiles_are_left_out_and_bad_ones_are_named(tmp_path: Path) -> None:
    images, maps = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    maps.mkdir()
    image, classes = scene(128, 128, 1, np.uint16)[..., 0] | 1, labels(0, 128, 128)
    image[:64, :64] = 0  # without data
    classes[64:, 64:] = 255
    classes[:64, 64:] = 9
    (images / "a.tif").write_bytes(tiff(image, extratags=[(42113, "s", 0, "0", True)]))
    (maps / "a.tif").write_bytes(tiff(classes))
    (images / "b.tif").write_bytes(tiff(image))
    (maps / "b.tif").write_bytes(tiff(classes[:100]))
    options = replace(TILED, tile=Tiling(64))
    for _ in range(2):  # the second time, from the finished shard
        report = cut(images, tmp_path / "out", options, maps)
        assert report.empty == 2
        assert report.warnings == ["2 tiles are left out: without data or without a class in every pixel"]
        assert list(maps_of(open_set(tmp_path / "out"))) == ["a_y00064_x00000"]
        written = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
        assert written == report.broken
        assert {line["tile"] for line in written} == {
            "a_y00000_x00064",
            *(f"b_y{top:05d}_x{left:05d}" for top in (0, 64) for left in (0, 64)),
        }
        assert counted_problems(written) == "5 tiles"
        assert problem_name(written[0]) == f"{written[0]['path']}, tile {written[0]['tile']}"
        groups = grouped(report.broken)
        assert sorted(Path(name).name for name, _ in groups) == [
            "a.tif, tile a_y00000_x00064",
            "b.tif, tile b_y00000_x00000 and 3 more",
        ]
        reasons = sorted(line["reason"] for line in report.broken)
        assert len(reasons) == 5
        assert "a.tif: value 9 (4,096 pixels) not among the classes" in reasons[0]
        assert all("b.tif: it is 128 x 100, and the image is 128 x 128" in reason for reason in reasons[1:])


def test_a_source_without_a_tile_to_pack_says_why(tmp_path: Path) -> None:
    """Tiles are not counted_problems as images, and those that are empty not as damaged."""
    images, maps = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    maps.mkdir()
    (images / "a.png").write_bytes(png(pixels(0, 128, 64)))
    (maps / "a.png").write_bytes(png(np.full((128, 64), 255, np.uint8)))
    options = replace(TILED, tile=Tiling(64))
    with pytest.raises(DataError, match=r"^all 2 tiles of .*images would be left out: .* --ignore, or --zero-is-ignor"):
        cut(images, tmp_path / "out", options, maps)
    (maps / "a.png").write_bytes(png(np.repeat(np.array([255, 9], np.uint8), 64)[:, None].repeat(64, 1)))
    with pytest.raises(
        DataError,
        match=r"has no tile to pack: 1 tile cannot be read, and 1 are without data or class: see .*; the first: "
        r".*a.png, tile a_y00064_x00000: its label map .*: value 9",
    ):
        cut(images, tmp_path / "out", options, maps)
    blank = tiff(np.zeros((64, 100), np.uint16), extratags=[(42113, "s", 0, "0", True)])
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.tif").write_bytes(blank)
    with pytest.raises(
        DataError, match=r"^all 2 tiles of .*blank would be left out: .* GDAL_NODATA of the files, names"
    ):
        cut(tmp_path / "blank", tmp_path / "out", options)
    (maps / "a.png").write_bytes(png(labels(0, 60, 64)))
    with pytest.raises(
        DataError, match=r"^none of the 2 tiles of .* can be read: see .*, tile a_y000.*: its label map"
    ):
        cut(images, tmp_path / "out", options, maps)


def test_damaged_and_missing_parts_break_their_tiles(tmp_path: Path) -> None:
    image = scene(128, 128, 1, np.uint16)[..., 0]
    whole = tiff(image, rowsperstrip=16)
    with pytest.raises(BrokenSample, match=r"tiff: it ends .* bytes too early"):
        Scene(whole[:-1000], 10**6, 92).tile((64, 64, 64, 64))
    deflated = bytearray(tiff(image, rowsperstrip=16, compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(deflated))) as file:
        start = file.pages.first.dataoffsets[0]
    deflated[start : start + 40] = bytes(40)
    with pytest.raises(BrokenSample, match=r"^tiff: "):
        Scene(bytes(deflated), 10**6, 92).tile((0, 0, 64, 64))
    Scene(bytes(deflated), 10**6, 92).tile((64, 0, 64, 64))
    with pytest.raises(BrokenSample, match="above the limit of 1,000 pixels"):
        Scene(whole, 1000, 92).tile((0, 0, 64, 64))
    (tmp_path / "cut.tif").write_bytes(whole[:100])
    (tmp_path / "good.tif").write_bytes(whole)
    report = cut(tmp_path, tmp_path / "out")
    assert [Path(line["path"]).name for line in report.broken] == ["cut.tif"]
    assert report.cards["train"].num_samples == 9


def test_decoded_parts_are_kept_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each strip is decoded once for a row of tiles, and no more of them are kept than the bound allows."""
    from swinv2_train.data import tiff_region

    image = scene(256, 256, 1, np.uint16)[..., 0]
    data = tiff(image, rowsperstrip=16, compression="zlib")
    monkeypatch.setattr(tiff_region, "_KEPT_BYTES", 5 * 16 * 256 * 2)
    regions = TiffRegions(io.BytesIO(data), data)
    assert regions.as_stored
    for top in range(0, 256, 64):
        for left in range(0, 256, 64):
            assert (regions.read((top, left, 64, 64))[..., 0] == image[top : top + 64, left : left + 64]).all()
            assert regions._kept_bytes <= 5 * 16 * 256 * 2
    assert set(regions._kept) == {(0, number) for number in range(11, 16)}
