"""Folders of images and of label maps are paired by the names of their files, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_train.data.errors import DataError
from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.pack_sources import open_source
from tests.data.label_maps import labels, png, tiff, write_pairs
from tests.data.packed import open_set
from tests.data.samples import encoded, pixels
from tests.data.test_pack_label_maps import RULES, maps_of, packed


def test_files_without_a_partner_are_counted_and_named(tmp_path: Path) -> None:
    images, maps = write_pairs(tmp_path)
    (maps / "a" / "1.png").unlink()
    (maps / "a" / "7.png").write_bytes(png(labels(0)))
    (maps / "b.png").write_bytes(png(labels(0)))
    report = packed(images, maps, tmp_path / "out")
    assert not report.complete
    assert [(Path(line["path"]).name, line["reason"]) for line in report.broken] == [
        ("1.png", f"it has no label map (expected {maps}/a/1.png or .tif)")
    ]
    broken = packed(images, maps, tmp_path / "out").broken
    assert broken == report.broken
    with pytest.raises(DataError, match=r"; the first: .*png: its label map"):
        packed(images, maps, tmp_path / "none", rules=LabelRules(("only",)))
    assert report.notes == [
        f"images without a label map: 1, {images}/a/1.png",
        f"label maps without an image: 2, {maps}/a/7.png, {maps}/b.png",
    ]


def test_endings_of_all_names_are_left_out(tmp_path: Path) -> None:
    for name in ("7", "17", "x_1"):
        for folder, ending in (("images", "_sat"), ("labels", "_mask")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}{ending}.png").write_bytes(png(labels(0)))
    report = packed(tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    assert set(maps_of(open_set(tmp_path / "out"))) == {"7_sat", "17_sat", "x_1_sat"}
    assert report.notes == ["paired by parts of names: _mask instead of _sat at the end of images"]
    (tmp_path / "images" / "8_sat.png").write_bytes(png(labels(0)))
    with pytest.raises(DataError, match=r"which image: with _mask .*, 1 of 4 images have none \(8_sat\); add .* list"):
        packed(tmp_path / "images", tmp_path / "labels", tmp_path / "two")
    for name in range(20, 27):
        (tmp_path / "images" / f"{name}_sat.png").write_bytes(png(labels(0)))
        (tmp_path / "labels" / f"{name}_mask.png").write_bytes(png(labels(0)))
    report = packed(tmp_path / "images", tmp_path / "labels", tmp_path / "two")
    (refused,) = report.broken
    assert refused["reason"] == f"it has no label map (expected {tmp_path}/labels/8_mask.png or .tif)"
    assert not report.complete
    assert report.cards["train"].num_samples == 10
    assert report.notes[1] == f"images without a label map: 1, {tmp_path}/images/8_sat.png"


def test_folders_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    images, maps = write_pairs(tmp_path, 2)
    check: list[tuple[Callable[[], object], str]] = [
        (
            lambda: packed(images, tmp_path / "none", tmp_path / "out"),
            "none does not exist: name the folder of the label",
        ),
        (lambda: packed(images, images / "a" / "0.png", tmp_path / "out"), "is not a folder"),
        (lambda: packed(images, images, tmp_path / "out"), "is the folder of the images: move the label maps"),
        (lambda: packed(images, tmp_path / "empty", tmp_path / "out"), "empty holds no label maps"),
    ]
    (tmp_path / "empty").mkdir()
    for call, message in check:
        with pytest.raises(DataError, match=message):
            call()
    (maps / "a" / "1.tif").write_bytes(tiff(labels(1)))
    with pytest.raises(DataError, match=r"1.png has two label maps, .*1.png and .*1.tif: remove one of them"):
        packed(images, maps, tmp_path / "out")
    (maps / "a" / "1.tif").unlink()
    (images / "a" / "1.jpg").write_bytes(encoded(pixels(1, 24, 32)))
    with pytest.raises(DataError, match=r"1.jpg and .*1.png have the same label map .*1.png: remove one of the images"):
        packed(images, maps, tmp_path / "out")
    (images / "a" / "1.jpg").unlink()
    with pytest.raises(DataError, match="--classes has a class for each image, and --labels one for each pixel"):
        open_source(str(images), classes=True, seed=0, labels=LabelMaps(str(maps), RULES))
    (images / "labels").mkdir()
    (images / "labels" / "a").mkdir()
    for number in range(2):
        (images / "labels" / "a" / f"{number}.png").write_bytes(png(labels(number)))
    inside = packed(images, images / "labels", tmp_path / "inside")  # a folder of label maps among the images
    assert inside.cards["train"].num_samples == 2
    with pytest.raises(DataError, match=r"none of the 2 images .* can be read: .*; the first: .*: values 2 "):
        packed(images, images / "labels", tmp_path / "wrong", rules=LabelRules(("only",)))
