"""Label maps of image files: the classes that the model finds, with their colors, georeference, and areas."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

from swinv2_train.cli.sheet import csv_text, jsonl_text
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.data.label_image import decode_label_map
from swinv2_train.tasks.prediction import FinishedModel, PredictOptions, Unreadable
from swinv2_train.tasks.segmentation import label_files, overlay
from swinv2_train.tasks.segmentation.colors import IGNORED, color_code, palette
from swinv2_train.tasks.segmentation.label_files import LabelFile, bands
from swinv2_train.tasks.segmentation.predictor import LabelMapPredictor, MapPrediction
from tests.data.test_image_regions import METERS, geo_tiff

NAMES = ["dark", "middle", "bright"]


class Brightness(nn.Module):
    """Class of a patch by the mean of its pixels, which are normalized with mean 0 and deviation 1."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.centers = nn.Parameter((torch.arange(classes) + 0.5) / classes)

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, (0, -width % 4, 0, -height % 4))
        mean = nn.functional.avg_pool2d(padded.mean(1, keepdim=True), 4)
        return -((mean - self.centers[:, None, None]) ** 2), None


def _predictor(
    places: dict[Path, Path], out: Path | None, channels: int = 1, names: list[str] | None = None, **task: Any
) -> LabelMapPredictor:
    names = names or NAMES
    config = Config(task=SegmentationConfig(num_classes=len(names), **{"resize": "native", **task}))
    config.model.in_channels = channels
    config.data.resolution = 16
    config.data.background = "white"
    mean, std, device = [0.0] * channels, [1.0] * channels, torch.device("cpu")
    model = FinishedModel(Brightness(len(names)), config, mean, std, names, device)
    options = PredictOptions(pictures=1, files=places if out else None, directory=out)
    return LabelMapPredictor(model, options, lambda *_: None)


def _scene(height: int = 48, width: int = 64) -> np.ndarray:
    """Three vertical stripes of 24, 16, and the remaining columns: dark, middle, bright."""
    values = np.full((height, width), 230, np.uint8)
    values[:, :24], values[:, 24:40] = 20, 128
    return values


def _labels() -> np.ndarray:
    return np.repeat([0, 1, 2], [24, 16, 24])[None].repeat(48, 0)


@pytest.mark.parametrize("inference", ["whole", "slide"])
def test_a_photograph_becomes_a_palette_png_and_an_overlay(tmp_path: Path, inference: str) -> None:
    path, broken = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(_scene()).save(path)
    broken.write_bytes(b"no image")
    predictor = _predictor({path: Path("deep/a"), broken: Path("b")}, tmp_path / "out", inference=inference)
    with torch.inference_mode():
        found, failed = predictor.predict([path, broken])
    assert isinstance(failed, Unreadable)
    assert isinstance(found, MapPrediction)
    written = tmp_path / "out" / "labels" / "deep" / "a.png"
    labels = decode_label_map(written.read_bytes()).numpy()
    assert (labels == _labels()).mean() > 0.95  # but for one pixel at the borders of stripes, by interpolation
    with Image.open(written) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image.convert("RGB")), palette(3)[labels])
    with Image.open(tmp_path / "out" / "overlays" / "deep" / "a.jpg") as picture:
        assert picture.size == (64, 48)
    assert found.picture is not None
    assert [name for _, name, _ in found.classes] == sorted(
        NAMES, key=lambda name: -(labels == NAMES.index(name)).sum()
    )
    assert sum(found.pixels) == 48 * 64
    assert not list((tmp_path / "out").rglob("*.partial"))
    rows = list(csv.DictReader(io.StringIO(csv_text([found], MapPrediction))))
    assert [(row["class"], int(row["pixels"]), row["area"]) for row in rows] == [
        (name, int((labels == NAMES.index(name)).sum()), "") for _, name, _ in found.classes
    ]
    assert f'"label_map": "{written}"' in jsonl_text([found])
    assert found.colors() == [color_code(number) for number, _, _ in found.classes]


def test_a_geotiff_keeps_its_georeference_and_its_pixels_without_data(tmp_path: Path) -> None:
    values = np.repeat(_scene()[..., None], 4, 2).astype(np.uint16) * 257
    values[:7, 50:] = 0
    path = geo_tiff(tmp_path / "scene.tif", values, METERS, nodata="0", tile=(16, 16), planarconfig="contig")
    predictor = _predictor({path: Path("scene")}, tmp_path, channels=4, inference="slide", overlap=0.5)
    with torch.inference_mode():
        (found,) = predictor.predict([path])
    labels = tmp_path / "labels" / "scene.tif"
    with tifffile.TiffFile(path) as source, tifffile.TiffFile(labels) as result:
        before, after = source.pages.first, result.pages.first
        for tag in (33550, 33922, 34735, 34737):
            assert before.tags[tag].value == after.tags[tag].value
        assert str(after.tags[42113].value).strip("\0") == "255"
        written = after.asarray()
        assert after.photometric == tifffile.PHOTOMETRIC.PALETTE
        assert np.array_equal(after.colormap[:, :3] // 257, palette(3).T)
        assert after.colormap[:, 255].tolist() == [257 * each for each in IGNORED]
    assert (written[:7, 50:] == 255).all()
    with Image.open(tmp_path / "overlays" / "scene.jpg") as picture:
        # Without data: stripes, gray and of two shades; they look like no class.
        missing = np.array(picture)[:6, 52:].astype(int)
    assert np.ptp(missing, axis=2).max() < 30
    assert np.ptp(missing) > 50
    assert (written == 255).sum() == 7 * 14
    counted = written != 255
    assert ((written == _labels()) & counted).sum() > 0.95 * counted.sum()
    assert isinstance(found, MapPrediction)
    assert found.without_data == 7 * 14
    rows = list(csv.DictReader(io.StringIO(csv_text([found], MapPrediction))))
    assert rows[-1]["class"] == "(no data)"
    assert float(rows[0]["area"]) == 50 * int(rows[0]["pixels"])
    assert sum(float(row["share"] or 0) for row in rows) == pytest.approx(1, abs=1e-5)
    assert decode_label_map(labels.read_bytes()).shape == (48, 64)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_dark_scene_of_16_bits_is_visible_in_its_overlay(tmp_path: Path, channels: int) -> None:
    """A satellite uses few of the 16 bits, and a border without data has other values."""
    rows = np.linspace(100, 900, 48).round().astype(np.uint16)
    values = np.broadcast_to(rows[:, None, None], (48, 64, channels)).copy()
    values[:, :12] = 65535
    path = geo_tiff(tmp_path / "dark.tif", values, nodata="65535", tile=(16, 16), planarconfig="contig")
    with torch.inference_mode():
        (found,) = _predictor({path: Path("dark")}, tmp_path, channels=channels).predict([path])
    with Image.open(tmp_path / "overlays" / "dark.jpg") as picture:
        shown = np.asarray(picture.convert("L"))[:, 20:].astype(int)
    # All of it is class 0, which is black, so the picture has half of the brightness.
    assert shown[2].max() < 20
    assert shown[-3].min() > 105
    assert found.picture is not None
    assert np.asarray(found.picture.convert("L"))[-3, 20:].min() > 105


def test_a_reduced_image_is_labeled_at_its_original_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(_scene().repeat(3, 0).repeat(3, 1)).save(path)
    with torch.inference_mode():
        (found,) = _predictor({path: Path("a")}, tmp_path / "out", resize="short").predict([path])
    labels = decode_label_map((tmp_path / "out" / "labels" / "a.png").read_bytes()).numpy()
    assert labels.shape == (144, 192)
    assert (labels == _labels().repeat(3, 0).repeat(3, 1)).mean() > 0.85
    assert found.path == path


def test_more_than_255_classes_have_16_bits(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(300)]
    png, tiff = tmp_path / "a.png", tmp_path / "b.tif"
    Image.fromarray(_scene()).save(png)
    tifffile.imwrite(tiff, _scene(), photometric="minisblack")
    with torch.inference_mode():
        list(_predictor({png: Path("a"), tiff: Path("b")}, tmp_path / "out", names=names).predict([png, tiff]))
    maps = [decode_label_map((tmp_path / "out" / "labels" / name).read_bytes()) for name in ("a.png", "b.tif")]
    assert maps[0].dtype == torch.uint16
    assert np.array_equal(maps[0].numpy(), maps[1].numpy())
    assert maps[0].numpy().max() > 255


def test_a_label_map_replaces_that_of_the_other_format(tmp_path: Path) -> None:
    png, tiff, labels = tmp_path / "a.png", tmp_path / "a.tif", tmp_path / "out" / "labels"
    Image.fromarray(_scene()).save(png)
    tifffile.imwrite(tiff, _scene(), photometric="minisblack")
    for path, name in ((png, "a.png"), (tiff, "a.tif"), (png, "a.png")):
        with torch.inference_mode():
            (found,) = _predictor({path: Path("a")}, tmp_path / "out").predict([path])
        assert [each.name for each in labels.iterdir()] == [name]
        assert found.label_map == labels / name
    tiff.write_bytes(tiff.read_bytes()[:100])  # an image that cannot be read replaces nothing
    with torch.inference_mode():
        list(_predictor({tiff: Path("a")}, tmp_path / "out").predict([tiff]))
    assert [each.name for each in labels.iterdir()] == ["a.png"]


def test_without_files_only_areas_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(_scene()).save(path)
    with torch.inference_mode():
        (found,) = _predictor({}, None).predict([path])
    assert isinstance(found, MapPrediction)
    assert found.label_map is None
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_map_leaves_no_file(tmp_path: Path) -> None:
    path = geo_tiff(tmp_path / "a.tif", np.repeat(_scene()[..., None], 3, 2), tile=(16, 16))
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[-1]
    path.write_bytes(data[: start + 100])
    with torch.inference_mode():
        (failed,) = _predictor({path: Path("a")}, tmp_path / "out", channels=3).predict([path])
    assert isinstance(failed, Unreadable)
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == []


def test_strips_become_tiles_and_a_reduced_overlay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(label_files, "_TILE", 16)
    monkeypatch.setattr(overlay, "LONGEST_SIDE", 32)
    labels = np.random.default_rng(0).integers(0, 9, (50, 70)).astype(np.uint8)
    strips = [labels[first : first + 7] for first in range(0, 50, 7)]
    assert [len(band) for band in bands(strips, 16)] == [16, 16, 16, 2]
    LabelFile((50, 70), 9, np.dtype(np.uint8)).write_tiff(tmp_path / "a.tif", strips)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), labels)

    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 50, 70), dtype=np.uint8))
    drawn = []
    for step in (7, 50):
        canvas = overlay.Overlay((50, 70), 3, 9)
        for first in range(0, 50, step):
            canvas.add(first, image[:, first : first + step], labels[first : first + step])
        drawn.append(np.array(canvas.draw()))
    assert drawn[0].shape == (16, 23, 3)  # a third
    assert np.array_equal(*drawn)
    mean = image[:, :3, :3].float().mean((1, 2)).numpy()
    assert np.abs(drawn[0][0, 0] - (mean + palette(9)[labels[1, 1]]) / 2).max() <= 2
