"""Boxes from a CSV and from the XML of Pascal VOC are packed as those of COCO's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swinv2_train.data.box_lists import read_boxes
from swinv2_train.data.errors import DataError
from swinv2_train.data.voc_xml import read_voc
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


HEADER = "image,xmin,ymin,xmax,ymax,label"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["a.jpg,1,2"], "line 2: 3 of 6 columns; xmax is missing"),
        (["a.jpg,1,2,,4,tree"], "line 2, column xmax: it is empty, and the row has a box"),
        (["a.jpg,1,2,3,4,tree", "a.jpg,1,2,3,4,old,tree"], "line 3: 7 columns, and the header has 6"),
        (
            ["a.jpg,.1,.2,.3,.4,tree"] * 4,
            "fractions of the image; its columns must be xmin, ymin, xmax, ymax in pixels",
        ),
        (["a.jpg,30,30,5,6,tree"] * 2, "2 of its 2 boxes have a right below .* line 2 of boxes.csv; if the last two"),
    ],
)
def test_a_csv_that_means_something_else_is_refused(tmp_path: Path, rows: list[str], sentence: str) -> None:
    (tmp_path / "boxes.csv").write_text("\n".join([HEADER, *rows]))
    with pytest.raises(DataError, match=sentence):
        read_boxes(tmp_path / "boxes.csv", None)


def test_a_box_whose_sides_are_exchanged_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [
        "a.jpg,1,2,9,9,tree",
        "a.jpg,9,2,1,9,tree",
        "a.jpg,1,9,9,2,tree",
        "a.jpg,1,2,8,8,tree",
        "b.jpg",
        "c.jpg,,,,,",
    ]
    (tmp_path / "boxes.csv").write_text("\n".join([HEADER, *rows]))
    found = read_boxes(tmp_path / "boxes.csv", None)
    assert found.cleaning.counts == {"reversed": (2, ["line 3 of boxes.csv", "line 4 of boxes.csv"])}
    assert [len(found.store.of_image(image.number)) for image in found.images] == [2, 0, 0]


def test_a_folder_is_not_a_csv_and_not_every_folder_has_xml(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--voc FOLDER reads a folder of XML files"):
        read_boxes(tmp_path, None)
    with pytest.raises(DataError, match="holds no XML files: name the folder of the annotations"):
        read_voc(tmp_path, None)
    (tmp_path / "0.xml").write_text(voc(""))
    with pytest.raises(DataError, match="its only XML file has no object of Pascal VOC"):
        read_voc(tmp_path, None)
    (tmp_path / "0.xml").write_text(voc("".join(voc_object("tree", (0.1, 0.1, 0.5, 0.6)) for _ in range(4))))
    with pytest.raises(DataError, match="fractions of the image; bndbox must be xmin, ymin, xmax, and ymax in pixels"):
        read_voc(tmp_path, None)


def test_pascal_voc_without_names_of_files_and_boxes(tmp_path: Path, images: Path) -> None:
    """A file without `filename` is named like its image; an object without a box is dropped in the words of VOC."""
    folder = tmp_path / "Annotations"
    folder.mkdir()
    objects = voc_object("tree", (1, 1, 32, 24)) + "<object><name>bush</name></object>"
    (folder / "0.xml").write_text(f"<annotation>{objects}</annotation>")
    report = packed(images, folder, tmp_path / "out", kind="voc")
    assert {key: len(one) for key, one in objects_of(open_set(tmp_path / "out")).items()} == {"a/0": 1}
    assert report.cleaning.counts == {"no bndbox": (1, ["0.xml: object 1, bush"])}
