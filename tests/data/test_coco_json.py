"""Corners of COCO's JSON as exporters write it: each has its result, or one sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.data.coco_json import read_coco
from swinv2_train.data.errors import DataError
from swinv2_train.data.object_rules import clean
from swinv2_train.data.object_store import Annotated
from tests.data.annotated import CATEGORIES, HEIGHT, WIDTH, annotation, coco, packed, write_coco, write_images

TRIANGLE = [4, 4, 12, 4, 12, 10]
BOX = [2.0, 3.0, 10.0, 8.0]
RLE = "T3d0Xd0"
Found = dict[str, list[tuple[Any, ...]]]
"""By image: id, category, box, crowd, area, and form of the mask of each object."""


def one(**change: Any) -> dict[str, Any]:
    """The annotations of an image with one object."""
    return content([annotation(1, 1, 7, **{"bbox": BOX, "segmentation": ..., **change})])


def content(annotations: list[dict[str, Any]], **image: Any) -> dict[str, Any]:
    images = [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH, **image}]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def rle(counts: Any, **change: Any) -> dict[str, Any]:
    return one(segmentation={"size": [HEIGHT, WIDTH], "counts": counts}, **change)


def result(mask: str | None = None, *, crowd: bool = False, area: float = 60.0, box: list[float] = BOX) -> Found:
    return {"a.jpg": [(1, 1, box, crowd, area, mask)]}


MANY = [annotation(n, 1 + n % 2, segmentation=...) for n in range(40)]
TWO = [{"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in (1, 2)]
LAST = {"annotations": MANY, "images": TWO, "categories": CATEGORIES}
CASES: dict[str, tuple[Any, Found | str | Callable[[Found], bool]]] = {
    "annotations first, categories last": (LAST, lambda found: [len(each) for each in found.values()] == [20, 20]),
    "in no order by image": (
        LAST, lambda found: [row[0] for row in found["2.jpg"]] == list(range(1, 40, 2))
    ),
    "ids of images as texts": (
        content([annotation(1, "x", 7, bbox=BOX, segmentation=...)], id="x"), result()  # type: ignore[arg-type]
    ),
    "a text for a number": (
        content([annotation(1, "1", 7)]),  # type: ignore[arg-type]
        r"its only annotation cannot be used: the image is not listed .*; '1' is a text, and the list has .* 1",
    ),
    "a text for the number of a category": (
        content([annotation(n, 1, "7") for n in range(3)]),  # type: ignore[arg-type]
        r"none of its 3 annotations can be used: .*; '7' is a text, and the list has the number 7: write both",
    ),
    "an empty list of annotations": (content([]), {"a.jpg": []}),
    "no list of annotations": ({"images": content([])["images"], "categories": CATEGORIES}, "has no annotations; "),
    "an image twice": (one() | {"images": content([])["images"] * 2}, result()),
    "NaN": (one(bbox=[float("nan"), 3, 10, 8]), {"a.jpg": []}),
    "Infinity": (one(bbox=[2, 3, float("inf"), 8]), {"a.jpg": []}),
    "a negative width": (one(bbox=[12, 3, -10, 8]), {"a.jpg": []}),
    "no polygon": (one(segmentation=[]), result()),
    "polygons": (one(segmentation=[TRIANGLE]), result("polygons")),
    "a polygon that is not in a list": (one(segmentation=TRIANGLE), result("polygons")),
    "counts as a list": (rle([100, 20, 648]), result(RLE)),
    "counts as a text": (rle(RLE), result(RLE)),
    "counts as bytes in a text": (rle(f"b'{RLE}'"), {"a.jpg": []}),
    "a crowd with run lengths": (rle([100, 20, 648], iscrowd=1), result(RLE, crowd=True)),
    "a crowd with a polygon": (one(segmentation=[TRIANGLE], iscrowd=1), result("polygons", crowd=True)),
    "no area, a box": (one(area=...), result(area=80.0)),
    "no area, run lengths": (rle([100, 20, 648], area=...), result(RLE, area=20.0)),
    "no box, run lengths": (rle([100, 20, 648], bbox=...), result(RLE, box=[4, 4, 1, 20])),
    "no id": (one(id=...), {"a.jpg": [(None, 1, BOX, False, 60.0, None)]}),
    "no size of the image": (one() | {"images": [{"id": 1, "file_name": "a.jpg"}]}, result()),
    "copies": (content([annotation(1, 1, 7, bbox=BOX, segmentation=...)] * 3), result()),
    "no list": (one() | {"images": {"1": "a.jpg"}}, "has no images; annotations are"),
    "results": ([{"image_id": 1, "category_id": 2, "bbox": BOX, "score": 0.5}], "is a list, as results are"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_corners(tmp_path: Path, case: str) -> None:
    given, expected = CASES[case]
    path = write_coco(tmp_path, given)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_coco(path, None)
        return
    found = objects_in(path)
    assert expected(found) if callable(expected) else found == expected


def objects_in(path: Path) -> Found:
    read, found = read_coco(path, None), Found()
    for image in read.images:
        source = Annotated(image.name, image.id, image.size, read.store.of_image(image.number))
        rows = clean(source, (HEIGHT, WIDTH), 1)[0].to_json()["objects"]
        keys = ("id", "category", "bbox", "iscrowd", "area")
        found[image.name] = [(*(row[key] for key in keys), _form(row.get("segmentation"))) for row in rows]
    return found


def _form(mask: Any) -> str | None:
    return mask["counts"] if isinstance(mask, dict) else "polygons" if mask else None


def test_compressed_files_are_read_whatever_their_name(tmp_path: Path) -> None:
    text = json.dumps(LAST).encode()
    expected = objects_in(write_coco(tmp_path, LAST))
    for name in ("annotations.json.gz", "annotations.json"):
        (tmp_path / name).write_bytes(gzip.compress(text))
        assert objects_in(tmp_path / name) == expected
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(DataError, match="its compression is damaged or cut off: copy or download it again"):
        read_coco(tmp_path / "cut.json.gz", None)
    damaged = bytearray(gzip.compress(text))
    for data in (damaged[:-20], damaged[: len(damaged) // 2], [*damaged[:40], *[0] * 40, *damaged[80:]]):
        (tmp_path / "damaged.json.gz").write_bytes(bytes(data))
        with pytest.raises(DataError, match=r"damaged.json.gz (cannot be read|is not intact JSON|has no) ?.*") as error:
            read_coco(tmp_path / "damaged.json.gz", None)
        assert "\n" not in str(error.value)


def test_other_encodings_and_a_folder_are_named(tmp_path: Path) -> None:
    for encoding, found in (
        ("utf-16", "has the encoding UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-16-le", "has zero bytes"),
    ):
        (tmp_path / "wide.json").write_text(json.dumps(LAST), encoding=encoding)
        with pytest.raises(DataError, match=f"{found}.*: save it as UTF-8"):
            read_coco(tmp_path / "wide.json", None)
    with pytest.raises(DataError, match="--voc FOLDER reads a folder of XML files"):
        read_coco(tmp_path, None)


@pytest.mark.parametrize("name", ["train.json,val.json", "*.json"])
def test_several_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="it is one file: pack the images of each file by its own command"):
        read_coco(tmp_path / name, None)


def test_two_images_of_one_file_are_refused(tmp_path: Path) -> None:
    given = coco(2)
    given["images"][1]["file_name"] = "a/0.jpg"
    with pytest.raises(DataError, match=r"\(id 100\) and a/0.jpg \(id 101\) are both the file a/0.jpg: keep one"):
        packed(write_images(tmp_path, 2), write_coco(tmp_path, given), tmp_path / "out")
