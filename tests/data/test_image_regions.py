"""Parts of image files: the same values as the entire image, and the georeference of a TIFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from swinv2_train.data.decode import DecodeOptions, decode
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geo_tags import NODATA
from swinv2_train.data.image_regions import open_regions
from swinv2_train.data.value_range import ValueRange

BOXES = ((0, 0, 50, 70), (13, 17, 20, 30), (49, 69, 1, 1), (0, 32, 50, 5))
DEGREES = (1, 1, 0, 1, 1024, 0, 1, 2)
METERS = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32632)


def _pixels(channels: int, dtype: Any, low: int = 0) -> np.ndarray:
    rng = np.random.default_rng(channels)
    values = rng.integers(low, 255, (50, 70, channels))
    return values.astype(dtype) * (257 if dtype == np.uint16 else 1)


def geo_tiff(path: Path, values: np.ndarray, keys: tuple[int, ...] = METERS, nodata: str = "", **options: Any) -> Path:
    """Write a GeoTIFF with pixels of 10 x 5 units."""
    tags = [(33550, 12, 3, (10.0, 5.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 5200000.0, 0.0), True)]
    tags += [(34735, 3, len(keys), keys, True), (34737, 2, 0, "WGS 84 / UTM zone 32N|", True)]
    tags += [(NODATA, 2, 0, nodata, True)] if nodata else []
    photometric = "rgb" if values.shape[-1] == 3 else "minisblack"
    options = {"photometric": photometric, "extratags": tags, "metadata": None} | options
    tifffile.imwrite(path, values if values.shape[-1] > 1 else values[..., 0], **options)
    return path


@pytest.mark.parametrize(
    ("channels", "dtype", "options"),
    [
        (4, np.uint16, {"tile": (16, 16), "compression": "zlib", "planarconfig": "contig"}),
        (4, np.uint16, {"tile": (16, 16), "planarconfig": "separate", "volumetric": False}),
        (3, np.uint8, {"rowsperstrip": 7, "compression": "lzw", "predictor": True}),
        (1, np.uint8, {"rowsperstrip": 64}),
        (2, np.uint8, {"tile": (32, 48), "planarconfig": "contig"}),
    ],
)
def test_parts_are_those_of_the_image(tmp_path: Path, channels: int, dtype: Any, options: dict[str, Any]) -> None:
    values = _pixels(channels, dtype)
    if options.get("planarconfig") == "separate":
        path = geo_tiff(tmp_path / "a.tif", np.moveaxis(values, -1, 0), **options, photometric="minisblack")
    else:
        path = geo_tiff(tmp_path / "a.tif", values, **options)
    whole = decode(path.read_bytes(), channels)
    with open_regions(path, channels, DecodeOptions(max_pixels=10)) as regions:  # no limit: they are read in parts
        assert regions.size == (50, 70)
        assert regions.is_tiff
        assert regions.geo is not None
        assert regions.geo.pixel_area == 50
        assert not regions.has_nodata
        for top, left, height, width in BOXES:
            part = regions.read(top, left, height, width)
            assert part.missing is None
            assert torch.equal(part.image, whole[:, top : top + height, left : left + width])


def test_scaled_values_and_pixels_without_data(tmp_path: Path) -> None:
    values = _pixels(2, np.float32, low=1)
    values[10:20, 5:40] = -9999
    values[30, 30, 0] = np.nan  # of one channel only
    path = geo_tiff(tmp_path / "a.tif", values, keys=DEGREES, nodata="-9999", tile=(16, 16), planarconfig="contig")
    options = DecodeOptions(values=ValueRange(((0.0, 255.0),), (0.5,)))
    whole = decode(path.read_bytes(), 2, options)
    with open_regions(path, 2, options) as regions:
        assert regions.has_nodata
        assert regions.geo is not None
        assert regions.geo.pixel_area is None  # square degrees say nothing about an area
        part = regions.read(12, 6, 4, 9)  # without any data, which is no reason to refuse a part
        assert part.missing is not None
        assert part.missing.all()
        assert (part.image == 0.5).all()
        part = regions.read(0, 0, 50, 70)
        assert torch.equal(part.image, whole)
        assert part.missing.sum() == 10 * 35


@pytest.mark.parametrize("name", ["a.png", "palette.tif", "turned.tif"])
def test_other_files_are_decoded_entirely(tmp_path: Path, name: str) -> None:
    path, values = tmp_path / name, _pixels(3, np.uint8)
    if name == "palette.tif":
        Image.fromarray(values).quantize(16).save(path)
    elif name == "turned.tif":
        geo_tiff(path, values, extratags=[(274, 3, 1, 6, True)])
    else:
        Image.fromarray(values).save(path)
    whole = decode(path.read_bytes(), 3)
    with open_regions(path, 3, DecodeOptions()) as regions:
        assert regions.size == tuple(whole.shape[1:])
        assert torch.equal(regions.read(3, 4, 20, 30).image, whole[:, 3:23, 4:34])
        assert regions.geo is None
        assert not regions.has_nodata
    few = DecodeOptions(max_pixels=100)
    with pytest.raises(BrokenSample, match="above the limit of 100 pixels"), open_regions(path, 3, few):
        pass


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    missing, empty, cut = tmp_path / "no.tif", tmp_path / "empty.tif", tmp_path / "cut.tif"
    empty.write_bytes(b"")
    geo_tiff(cut, _pixels(3, np.uint8), tile=(16, 16))
    for path, says in ((missing, "No such file"), (empty, "it is empty")):
        with pytest.raises(BrokenSample, match=says), open_regions(path, 3, DecodeOptions()):
            pass
    with open_regions(cut, 4, DecodeOptions()) as regions, pytest.raises(BrokenSample, match="has 3 channels, not 4"):
        regions.read(0, 0, 8, 8)
    with pytest.raises(ZeroDivisionError), open_regions(cut, 3, DecodeOptions()):  # as it is
        raise ZeroDivisionError
