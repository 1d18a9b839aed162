"""Boxes from a CSV and from the XML of Pascal VOC are packed as those of COCO's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.annotated import objects_of, packed, write_images
from tests.data.packed import open_set


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path, 4)


def voc(objects: str, size: str = "<size><width>32</width><height>24</height></size>", name: str = "") -> str:
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def voc_object(name: str, box: tuple[Any, ...], more: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def test_pascal_voc(tmp_path: Path, images: Path) -> None:
    """Files are named like their images, or name them; difficult objects are crowd regions; pixels count from 1."""
    folder = tmp_path / "Annotations"
    folder.mkdir()
    (folder / "0.xml").write_text(voc(voc_object("tree", (1, 1, 32, 24)) + voc_object("bush", (3, 4, 9.5, 10))))
    difficult = voc_object("tree", (2, 2, 8, 8), "<difficult>1</difficult>")
    (folder / "other.xml").write_text(voc(difficult, size="", name="1.jpg"))
    (folder / "2.xml").write_text(voc(""))
    (folder / "3.xml").write_text("<annotation><object>")
    report = packed(images, folder, tmp_path / "out", kind="voc")
    found = objects_of(open_set(tmp_path / "out"))
    assert {key: one.boxes.tolist() for key, one in found.items()} == {
        "a/0": [[0, 0, 32, 24], [2, 3, 9.5, 10]],
        "a/1": [[1, 1, 8, 8]],
        "a/2": [],
    }
    assert report.cards["train"].class_names == ["bush", "tree"]
    assert (found["a/0"].categories.tolist(), found["a/1"].crowd.tolist()) == ([1, 0], [True])
    assert [one["path"] for one in report.broken] == [str(folder / "3.xml")]
    assert "its XML cannot be read" in report.broken[0]["reason"]
    assert not report.complete


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image_path,xmin,ymin,xmax,ymax,label", "a/0.jpg,2,3,12.5,9,Tree"),
        ("label;x;y;width;height;image;score", "Tree;2;3;10.5;6;0.jpg;1"),
        ("\ufefffilename\tclass\tx1\ty1\tx2\ty2", "a/0.jpg\tTree\t2\t3\t12.5\t9"),
    ],
)
def test_boxes_of_a_csv(tmp_path: Path, images: Path, header: str, row: str) -> None:
    """Any order of the columns and separator; rows without numbers, or with four zeros, list images without objects."""
    separator = next(one for one in ",;\t" if one in header)
    empty = separator.join("a/1.jpg" if "jpg" in cell else "" for cell in row.split(separator))
    zeros = separator.join("a/2.jpg" if "jpg" in cell else "0" for cell in row.split(separator))
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join([header, row, empty, zeros, row.replace("Tree", "Bush").replace("2", "4", 1), ""]))
    report = packed(images, path, tmp_path / "out", kind="boxes")
    found = objects_of(open_set(tmp_path / "out"))
    assert {key: len(one) for key, one in found.items()} == {"a/0": 2, "a/1": 0, "a/2": 0}
    assert found["a/0"].boxes.tolist()[0] == [2, 3, 12.5, 9]
    assert report.cards["train"].class_names == ["Bush", "Tree"]
    assert report.cleaning.counts == {}
