"""Objects of image files: boxes and masks in pixels of the file, in tables, pictures, and COCO's format; tiles."""

from __future__ import annotations

import csv
import io
import json
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
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.models.detection import Detections
from swinv2_train.tasks.detection import predictor as predictor_module
from swinv2_train.tasks.detection.predictor import ObjectPredictor, ObjectsPrediction
from swinv2_train.tasks.prediction import FinishedModel, PredictOptions, Unreadable
from swinv2_train.tasks.segmentation.colors import object_color
from tests.data.test_image_regions import geo_tiff

NAMES = ["gray", "white"]


class Rectangles(nn.Module):
    """Finds bright rectangles on black: class 0 is gray, class 1 white. Its score is the share of the mean."""

    def __init__(self, *, masks: bool = True) -> None:
        super().__init__()
        self.masks, self.calls = masks, 0

    def forward(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        from scipy.ndimage import find_objects, label

        self.calls += 1
        found = []
        for image, size in zip(images, sizes.tolist(), strict=True):
            assert list(image.shape[-2:]) == size
            pixels = image[0].numpy()
            rows = []
            for place in find_objects(label(pixels > 0.25)[0]):
                value = float(np.median(pixels[place]))
                rows.append(
                    ([place[1].start, place[0].start, place[1].stop, place[0].stop], value > 0.75, min(value, 0.99))
                )
            rows.sort(key=lambda row: -row[2])
            found.append(
                Detections(
                    torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
                    torch.tensor([score for _, _, score in rows]),
                    torch.tensor([kind for _, kind, _ in rows], dtype=torch.int64),
                    torch.ones(len(rows), 28, 28) if self.masks else None,
                )
            )
        return found


def _predictor(
    places: dict[Path, Path], out: Path | None, *, masks: bool = True, resolution: int = 64, batch: int = 1, **task: Any
) -> ObjectPredictor:
    config = Config(task=DetectionConfig(num_classes=2, masks=masks, **task))
    config.model.in_channels = 1
    config.data.resolution = resolution
    config.data.background = "white"
    config.task.check_prediction()
    model = FinishedModel(Rectangles(masks=masks), config, [0.0], [1.0], NAMES, torch.device("cpu"))
    options = PredictOptions(batch=batch, pictures=1, files=places if out else None, directory=out)
    return ObjectPredictor(model, options, lambda *_: None)


def _scene(size: tuple[int, int], *boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """An image with rectangles, left, top, right, bottom, value."""
    image = np.zeros(size, np.uint8)
    for left, top, right, bottom, value in boxes:
        image[top:bottom, left:right] = value
    return image


def _boxes(prediction: ObjectsPrediction) -> list[list[int]]:
    return sorted(prediction.found.boxes.round().astype(int).tolist())


@pytest.mark.parametrize("masks", [True, False])
def test_an_image_becomes_tables_a_picture_and_coco_results(tmp_path: Path, masks: bool) -> None:
    from pycocotools.coco import COCO

    pictures = tmp_path / "in" / "deep"
    pictures.mkdir(parents=True)
    path, empty, broken = pictures / "a.png", tmp_path / "in" / "b.png", tmp_path / "in" / "c.png"
    Image.fromarray(_scene((48, 64), (4, 6, 20, 30, 255), (40, 8, 52, 40, 128), (30, 40, 34, 44, 110))).save(path)
    Image.fromarray(_scene((20, 64))).save(empty)
    broken.write_bytes(b"no image")
    places = {path: Path("deep/a"), empty: Path("b"), broken: Path("c")}
    predictor = _predictor(places, tmp_path / "out", masks=masks, category_ids=[7, 90])
    found, nothing, failed = predictor.predict([path, empty, broken])
    assert isinstance(failed, Unreadable)
    assert isinstance(found, ObjectsPrediction)
    assert isinstance(nothing, ObjectsPrediction)
    assert _boxes(found) == [[4, 6, 20, 30], [30, 40, 34, 44], [40, 8, 52, 40]]
    # Tables and pictures have those above 0.5.
    assert [(name, count) for (_, name, _), count in zip(found.classes, found.counts, strict=True)] == [
        ("gray", 1), ("white", 1),
    ]  # fmt: skip
    assert found.summary(5) == ["gray (1)", "white (1)"]
    assert nothing.summary(5) == ["nothing at 0.5 or more"]
    assert found.bars(1) == [("gray (1)", pytest.approx(128 / 255))]
    assert found.colors() == ["#{:02X}{:02X}{:02X}".format(*object_color(number)) for number in (0, 1)]
    rows = list(csv.DictReader(io.StringIO(csv_text([found, nothing], ObjectsPrediction))))
    assert [(row["class"], float(row["left"]), float(row["width"]), float(row["area"])) for row in rows] == [
        ("white", 4, 16, 16 * 24), ("gray", 40, 12, 12 * 32),
    ]  # fmt: skip
    lines = [json.loads(line) for line in jsonl_text([found, nothing]).splitlines()]
    assert [len(line["objects"]) for line in lines] == [2, 0]
    assert ("mask" in lines[0]["objects"][0]) is masks

    (name, text), *others = ObjectsPrediction.collected([found, nothing], NAMES).items()
    assert (name, others) == ("detections.json", [])
    (tmp_path / name).write_text(text)
    coco = COCO(str(tmp_path / name))
    assert [(image["id"], image["file_name"], image["height"]) for image in coco.dataset["images"]] == [
        (1, "deep/a.png", 48), (2, "b.png", 20),
    ]  # fmt: skip
    everything = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert len(everything) == 3
    assert [(each["category_id"], each["bbox"]) for each in everything[:2]] == [
        (90, [4.0, 6.0, 16.0, 24.0]), (7, [40.0, 8.0, 12.0, 32.0]),
    ]  # fmt: skip
    if masks:
        assert np.array_equal(coco.annToMask(everything[0]), _scene((48, 64), (4, 6, 20, 30, 1)))

    with Image.open(tmp_path / "out" / "pictures" / "deep" / "a.jpg") as picture:
        assert picture.size == (8 * 64, 8 * 48)
    assert found.picture is not None
    assert nothing.picture is None  # only one was requested


def test_boxes_are_in_pixels_of_the_file_at_any_test_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(_scene((60, 90), (10, 12, 40, 30, 255))).save(path)
    for task in ({}, {"test_short": 20, "test_long": 60}, {"test_scales": [1.0, 2.0], "test_flip": True}):
        (found,) = _predictor({}, None, resolution=180, **task).predict([path])
        assert isinstance(found, ObjectsPrediction)
        assert np.abs(found.found.boxes - [[10, 12, 40, 30]]).max() <= 2, task
        assert found.size == (60, 90)


def test_pictures_of_dark_images_of_16_bits_are_stretched(tmp_path: Path) -> None:
    shown = []
    for name, dtype in (("bright.png", np.uint8), ("dark.tif", np.uint16)):
        path = tmp_path / name
        values = np.linspace(0, 90, 64 * 64).reshape(64, 64).astype(dtype)  # of 255, and of 65,535
        tifffile.imwrite(path, values) if dtype == np.uint16 else Image.fromarray(values).save(path)
        _predictor({path: Path(name)}, tmp_path / "out").predict_image(path, wanted=False)
        shown.append(np.asarray(Image.open(tmp_path / "out" / "pictures" / f"{name}.jpg")))
    assert shown[0].max() < 120
    assert shown[1].max() > 200


def test_objects_on_borders_of_tiles_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [(25, 10, 50, 22, 255), (90, 70, 120, 84, 255), (2, 50, 10, 58, 255), (60, 28, 80, 64, 128)]
    path = geo_tiff(tmp_path / "a.tif", _scene((100, 130), *boxes)[..., None], tile=(16, 16))
    expected = sorted(list(box[:4]) for box in boxes)
    (whole,) = _predictor({}, None, resolution=130).predict([path])
    assert isinstance(whole, ObjectsPrediction)
    assert _boxes(whole) == expected
    steps: list[tuple[str, int, int]] = []
    monkeypatch.setattr(predictor_module, "_MANY_TILES", 1)
    for batch in (1, 4):
        predictor = _predictor({}, None, tile=64, tile_overlap=0.5, batch=batch)
        predictor.progress = lambda *step: steps.append(step)
        (found,) = predictor.predict([path])
        assert isinstance(found, ObjectsPrediction)
        assert _boxes(found) == expected
        assert predictor.model.module.calls == -(-12 // batch)
        assert ("tiles of a.tif", 12, 12) in steps
        assert found.found.masks is not None
        assert [mask["size"] for mask in found.found.masks] == [[100, 130]] * 4

    # An image may be larger than the limit if it is read in tiles; tiles without data are skipped.
    small = _predictor({}, None, tile=64, tile_overlap=0.5)
    small.model.config.data.max_pixels = 5000
    (found,) = small.predict([path])
    assert isinstance(found, ObjectsPrediction)
    assert _boxes(found) == expected
    whole_only = _predictor({}, None, resolution=130)
    whole_only.model.config.data.max_pixels = 5000
    (failed,) = whole_only.predict([path])
    assert isinstance(failed, Unreadable)
    assert "above the limit of 5,000 pixels" in failed.reason


def test_tiles_without_data_are_skipped(tmp_path: Path) -> None:
    values = _scene((64, 128), (70, 10, 90, 30, 254)) + np.uint8(1)
    values[:, :64] = 0
    path = geo_tiff(tmp_path / "a.tif", values[..., None], nodata="0", tile=(16, 16))
    predictor = _predictor({}, None, tile=64, tile_overlap=0.0)
    (found,) = predictor.predict([path])
    assert isinstance(found, ObjectsPrediction)
    assert predictor.model.module.calls == 1
    assert len(found.found) == 1
    values[:] = 0
    path = geo_tiff(tmp_path / "b.tif", values[..., None], nodata="0", tile=(16, 16))
    (nothing,) = _predictor({}, None, tile=64).predict([path])
    assert isinstance(nothing, ObjectsPrediction)
    assert (len(nothing.found), nothing.classes) == (0, [])


def test_an_image_with_more_pixels_than_run_lengths_can_count_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_module, "_MOST_MASK_PIXELS", 1000)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, _scene((40, 40)), photometric="minisblack")
    (failed,) = _predictor({}, None).predict([path])
    assert isinstance(failed, Unreadable)
    assert "40 x 40 pixels are too many for masks" in failed.reason
    (found,) = _predictor({}, None, masks=False).predict([path])
    assert isinstance(found, ObjectsPrediction)
