"""`swinv2-predict` with a detector: pictures, tables, and COCO's format; its options."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from swinv2_train.cli.predict import main
from swinv2_train.config.tasks import ClassificationConfig, DetectionConfig
from swinv2_train.data.decode import decode
from swinv2_train.interop.load import load_model
from swinv2_train.tasks.detection.inference import Inference, detections
from swinv2_train.tasks.detection.transform import evaluation_crops
from tests.evaluated import save_weights
from tests.interop.made import make_picture
from tests.models.detection.made import section
from tests.runs import exit_code, refusal

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """detector.safetensors, classifier.safetensors, and pictures/ with two images and a broken one."""
    place = tmp_path_factory.mktemp("objects")
    task: DetectionConfig = section("mask_rcnn", num_classes=3, masks=True, max_detections=6)
    save_weights(place / "detector.safetensors", task, NAMES, seed=7, depths=[1, 1, 1, 1], window=[4, 4, 4, 2])
    save_weights(place / "classifier.safetensors", ClassificationConfig(num_classes=3))
    (place / "pictures" / "deeper").mkdir(parents=True)
    make_picture(place / "pictures" / "a.png", size=(40, 36))
    make_picture(place / "pictures" / "deeper" / "b.png", size=(33, 50), seed=2)
    (place / "pictures" / "broken.png").write_bytes(b"no picture")
    return place


def test_every_image_gets_a_picture_and_all_objects_are_in_one_file(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = Path(shutil.copytree(place / "pictures", tmp_path / "pictures"))
    out = pictures / "found"  # a repeated call does not take its results for images
    assert exit_code(main, place / "detector.safetensors", pictures, "--out", out, "threshold=0.3", "top=2") == 1
    shown = capsys.readouterr()
    assert "2 images predicted, 1 could not be read" in shown.err
    assert "detections.json" in shown.out
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [
        ".swinv2-predict.jsonl", "detections.json", "pictures/a.jpg", "pictures/deeper/b.jpg", "predictions.csv",
        "predictions.jsonl", "sheet.html",
    ]  # fmt: skip
    results = json.loads((out / "detections.json").read_text())
    assert [image["file_name"] for image in results["images"]] == ["a.png", "deeper/b.png"]
    assert [category["name"] for category in results["categories"]] == NAMES

    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == sum(each["score"] >= 0.3 for each in results["annotations"])
    of_b = [each for each in results["annotations"] if each["image_id"] == 2]
    loaded = load_model(place / "detector.safetensors")
    crops = evaluation_crops(loaded.config, (50, 33))
    image = crops[0].image(decode((pictures / "deeper" / "b.png").read_bytes(), 3), "bilinear") / 255
    with torch.inference_mode():
        expected = detections(loaded.model, [(image - 0.5) / 0.25], (50, 33), Inference.of(loaded.config.task))
    assert len(of_b) == len(expected.scores) > 0
    assert [each["score"] for each in of_b] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    corners = [[x, y, x + width, y + height] for x, y, width, height in (each["bbox"] for each in of_b)]
    assert np.abs(np.array(corners) - expected.boxes.numpy().clip(0, [33, 50, 33, 50])).max() < 0.1
    assert all(each["segmentation"]["size"] == [50, 33] for each in of_b)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{place}/detector.safetensors", "{picture}", "overlap=0.5"], "overlap=0.5: applies to tiles only"),
        (["{place}/detector.safetensors", "{picture}", "tile=0"], "tile=0: must be an integer of at least 1"),
        (["{place}/detector.safetensors", "{picture}", "threshold=2"], "threshold=2: must be from 0 to 1"),
        (["{place}/detector.safetensors", "{picture}", "inference=slide"], "requires a segmenter"),
        (["{place}/classifier.safetensors", "{picture}", "tile=32"], "tile=32: requires a detector"),
        (["{place}/classifier.safetensors", "{picture}", "--flip"], "requires a segmenter or a detector"),
    ],
)
def test_usage_errors_are_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    names = {"place": place, "picture": place / "pictures" / "a.png"}
    assert says in refusal(main, capsys, *(argument.format(**names) for argument in arguments))


def test_broken_weights_are_reported(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with safe_open(place / "detector.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["rpn.conv.weight"] *= float("nan")
    save_file(tensors, tmp_path / "nan.safetensors", metadata=metadata)
    assert exit_code(main, tmp_path / "nan.safetensors", place / "pictures" / "a.png") == 1
    assert "its weights are broken" in capsys.readouterr().err
