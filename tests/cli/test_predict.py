"""Predictions of one's own files: the right numbers, every output, and files that cannot be read."""

from __future__ import annotations

import base64
import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from swinv2_train.cli.predict import main
from swinv2_train.interop.input_check import prepared
from swinv2_train.interop.load import load_model
from tests.interop.made import CLASSES, make_picture, write_model
from tests.runs import exit_code, refusal


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors, simmim.safetensors, and pictures/ with two pictures and two files that are none."""
    place = tmp_path_factory.mktemp("predict")
    write_model(place / "model.safetensors")
    write_model(place / "simmim.safetensors", simmim=True)
    pictures = place / "pictures"
    (pictures / "deeper").mkdir(parents=True)
    make_picture(pictures / "a <b> & c.png")
    make_picture(pictures / "deeper" / "upright.JPG", size=(60, 110), seed=1)
    (pictures / "half.jpg").write_bytes((pictures / "deeper" / "upright.JPG").read_bytes()[:300])
    (pictures / "text.png").write_text("not a picture")
    (pictures / "notes.txt").write_text("not named like a picture either")
    return place


@pytest.mark.slow
def test_all_outputs_agree_with_the_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, png = tmp_path / "out", tmp_path / "sheet.png"
    arguments = ("--top", 3, "--batch", 2, "--out", out, "--sheet", png)
    assert exit_code(main, place / "model.safetensors", place / "pictures", *arguments) == 1
    shown = capsys.readouterr()
    assert "half.jpg: jpeg:" in shown.err
    assert "text.png: it is not a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, or JPEG 2000 image" in shown.err
    assert "2 images predicted, 2 could not be read" in shown.err

    good = [place / "pictures" / "a <b> & c.png", place / "pictures" / "deeper" / "upright.JPG"]
    loaded = load_model(place / "model.safetensors")
    with torch.no_grad():
        shares, numbers = loaded.model(prepared(loaded, [path.read_bytes() for path in good])[1]).softmax(1).topk(3)
    expected = [
        (str(path), rank + 1, number, CLASSES[number])
        for path, row in zip(good, numbers.tolist(), strict=True)
        for rank, number in enumerate(row)
    ]
    rows = list(csv.DictReader(io.StringIO((out / "predictions.csv").read_text())))
    read = [(row["image"], int(row["rank"]), int(row["class_number"]), row["class"]) for row in rows]
    assert read == expected
    assert [float(row["probability"]) for row in rows] == pytest.approx(shares.flatten().tolist(), abs=1e-5)

    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in good]
    assert [each["name"] for line in lines for each in line["classes"]] == [row[3] for row in expected]
    assert f"{CLASSES[numbers[0, 0]]} {shares[0, 0]:.1%}" in shown.out

    sheet = _Sheet((out / "sheet.html").read_text())
    assert [image.size for image in sheet.images] == [(90, 70), (60, 110)]
    assert sheet.text.count(f"{shares[1, 2]:.1%}") >= 1
    assert "a <b> & c.png" in sheet.text  # escaped in the file, whole for the reader
    assert not sheet.outside
    with Image.open(png) as drawn:
        assert drawn.width > 600
        assert len(drawn.getcolors(1 << 24)) > 1000  # the pictures are on it


class _Sheet(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[Image.Image] = []
        self.text = ""
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if key in ("src", "href") and value and not value.startswith("data:"):
                self.outside.append(value)
            if key == "src" and value and value.startswith("data:image/jpeg;base64,"):
                self.images.append(Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_patterns_and_changes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"sort {number}\n" for number in range(len(CLASSES))))
    pattern = place / "pictures" / "**" / "*.JPG"
    assert (
        exit_code(main, place / "model.safetensors", pattern, "--labels", labels, "--top", 1, "data.resolution=128")
        == 0
    )
    shown = capsys.readouterr().out
    assert "upright.JPG" in shown
    assert "sort " in shown
    assert len(shown.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{place}/simmim.safetensors", "{place}/pictures"], "has no classes to name"),
        (["{place}/model.safetensors", "{place}/gone"], "does not exist"),
        (["{place}/model.safetensors", "{tmp}"], "holds no image"),
        (["{place}/model.safetensors", "model.window=8"], "IMAGES (or images=) is missing"),
        (["{place}/model.safetensors", "{picture}", "--csv", "{picture}"], "would be overwritten"),
        (["{place}/model.safetensors", "{picture}", "--sheet", "sheet.gif"], "must end in"),
        (["{place}/model.safetensors", "{picture}", "--csv", "{tmp}/no/x.csv"], "is not a directory"),
        (["{place}/model.safetensors", "{picture}", "--labels", "{place}/pictures/notes.txt"], "has 1 line"),
        (["{place}/model.safetensors", "{picture}", "--top", "0"], "--top 0: must be an integer of at least 1"),
        (["{place}/model.safetensors"], "IMAGES"),
    ],
)
def test_usage_errors_are_one_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    names = {"place": place, "tmp": tmp_path, "picture": place / "pictures" / "deeper" / "upright.JPG"}
    assert says in refusal(main, capsys, *(argument.format(**names) for argument in arguments))
