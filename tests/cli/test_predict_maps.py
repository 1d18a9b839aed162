"""`swinv2-predict` with a segmenter: label maps, overlays, tables, and a sheet for every image; nothing is mixed up."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from swinv2_train.cli.predict import main, print_predictions
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.data.label_image import decode_label_map
from swinv2_train.interop.load import load_model
from swinv2_train.tasks.segmentation.inference import Inference
from swinv2_train.tasks.segmentation.predictor import MapPrediction
from tests.evaluated import classifier, save_weights
from tests.interop.made import make_picture
from tests.runs import exit_code, refusal
from tests.tasks.segmentation.scores import predict_labels

NAMES = ["ground", "wall", "sky"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """segmenter.safetensors of windows 4, 4, 4, 2, classifier.safetensors, and pictures/ with two of equal stems."""
    place = tmp_path_factory.mktemp("maps")
    task = SegmentationConfig(num_classes=3, resize="native", channels=8, auxiliary_channels=8, decoder="fpn")
    save_weights(place / "segmenter.safetensors", task, NAMES, window=[4, 4, 4, 2])
    classifier(place / "classifier.safetensors")
    pictures = place / "pictures"
    (pictures / "deeper").mkdir(parents=True)
    make_picture(pictures / "a.png", size=(40, 36))
    make_picture(pictures / "a.jpg", size=(32, 30), seed=1)
    make_picture(pictures / "deeper" / "b.png", size=(33, 50), seed=2)
    (pictures / "broken.png").write_bytes(b"no picture")
    return place


@pytest.mark.slow
def test_every_image_gets_its_files(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = Path(shutil.copytree(place / "pictures", tmp_path / "pictures"))
    out = pictures / "maps"  # a repeated call does not take its results for images
    options = ["--inference", "slide", "overlap=0.25", "scales=1,0.75", "--flip", "test_window=8", "top=2", "batch=3"]
    assert exit_code(main, place / "segmenter.safetensors", pictures, "--out", out, *options) == 1
    shown = capsys.readouterr()
    assert "broken.png: it is not a JPEG" in shown.err
    assert "3 images predicted, 1 could not be read" in shown.err
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [
        ".swinv2-predict.jsonl", "labels/a.jpg.png", "labels/a.png.png", "labels/deeper/b.png", "overlays/a.jpg.jpg",
        "overlays/a.png.jpg", "overlays/deeper/b.jpg", "predictions.csv", "predictions.jsonl", "sheet.html",
    ]  # fmt: skip

    loaded = load_model(place / "segmenter.safetensors", ["test_window=8"])
    assert loaded.config.model.window == [[8, 8], [8, 8], [8, 8], [4, 4]]
    assert loaded.config.model.pretrained_window == [4, 4, 2, 1]  # of the bias, as clamped at 32 pixels
    image = torch.from_numpy(np.array(Image.open(pictures / "deeper" / "b.png"))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        inference = Inference(4, (32, 32), 0.25, (1.0, 0.75), flip=True)
        expected = predict_labels(loaded.model, (image - 0.5) / 0.25, inference)
    labels = decode_label_map((out / "labels" / "deeper" / "b.png").read_bytes()).numpy()
    assert (labels == expected).mean() > 0.999

    rows = list(csv.DictReader((out / "predictions.csv").open()))
    of_b = [row for row in rows if row["image"].endswith("b.png")]
    assert {NAMES.index(row["class"]): int(row["pixels"]) for row in of_b} == {
        number: int(count) for number, count in enumerate(np.bincount(labels.ravel())) if count
    }
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert sum(entry["pixels"] for entry in lines[-1]["classes"]) == labels.size
    best = of_b[0]
    assert f"{best['class']} {float(best['share']):.1%}" in shown.out
    sheet = (out / "sheet.html").read_text()
    assert sheet.count("<figure>") == 3
    assert "--own:#" in sheet

    # The same images again replace their files; others do not get among them.
    assert exit_code(main, place / "segmenter.safetensors", pictures / "a.png", pictures / "a.jpg", "--out", out) == 2
    assert "labels has files of other images (b.png): choose another directory" in capsys.readouterr().err
    (out / "predictions.csv").unlink()
    assert exit_code(main, place / "segmenter.safetensors", pictures, "--out", out) == 1
    assert (out / "predictions.csv").exists()


@pytest.mark.slow
def test_a_tiff_that_is_read_whole_has_a_limit(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "scene.tif", np.zeros((40, 50, 3), np.uint8), photometric="rgb")
    arguments = [place / "segmenter.safetensors", tmp_path / "scene.tif", "data.max_pixels=1000"]
    assert exit_code(main, *arguments) == 1
    assert "50 x 40 is above the limit of 1,000 pixels" in capsys.readouterr().err
    assert exit_code(main, *arguments, "task.resize=native", "inference=slide") == 0


def test_an_image_without_data_has_no_empty_row(capsys: pytest.CaptureFixture[str]) -> None:
    found = [MapPrediction(Path("a.tif"), [(0, "ground", 1.0)]), MapPrediction(Path("b.tif"), [])]
    print_predictions(found, 5)
    assert capsys.readouterr().out.splitlines()[1:] == ["a.tif  ground 100.0%", "b.tif  no data"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{place}/segmenter.safetensors", "{picture}", "overlap=0.5"], "overlap=0.5: applies to sliding windows only"),
        (["{place}/segmenter.safetensors", "{picture}", "batch=4"], "batch=4: whole images are predicted one by one"),
        (["{place}/segmenter.safetensors", "{picture}", "overlap=1"], "overlap=1: must be at least 0 and below 1"),
        (["{place}/segmenter.safetensors", "{picture}", "scales=0"], "scales=0: must be numbers above 0"),
        (["{place}/segmenter.safetensors", "{picture}", "inference=tiles"], "must be one of whole, slide"),
        (["{place}/segmenter.safetensors", "{picture}", "flip=true", "task.test_flip=false"], "is set 2 times"),
        (["{place}/segmenter.safetensors", "{picture}", "task.overlap=3"], "task.overlap=3"),
        (["{place}/segmenter.safetensors", "{picture}", "test_window=x"], "test_window=x: must be a side in tokens"),
        (["{place}/segmenter.safetensors", "{picture}", "test_window=8", "model.window=8"], "set one of them"),
        (["{place}/segmenter.safetensors", "{picture}", "labels={place}/names.txt"], "has 2 lines, the model 3"),
        (["{place}/classifier.safetensors", "{picture}", "--flip"], "flip=true: requires a segmenter or a detector"),
        (["{place}/segmenter.safetensors", "{place}/own/labels/a.png", "out={place}/own"], "a.png is inside of"),
        (["{place}/segmenter.safetensors", "{picture}", "out={place}/hand"], "and would replace (a.png): choose"),
        (["{place}/segmenter.safetensors", "{picture}", "task.resize=nativ"], "task.resize=nativ"),
        (["{place}/segmenter.safetensors", "{picture}", "scales=inf"], "must be numbers above 0"),
    ],
)
def test_usage_errors_are_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (place / "names.txt").write_text("one\ntwo\n")
    for folder in ("own", "hand"):
        (place / folder / "labels").mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "pictures" / "a.png", place / folder / "labels" / "a.png")
    names = {"place": place, "picture": place / "pictures" / "a.png"}
    assert says in refusal(main, capsys, *(argument.format(**names) for argument in arguments))
