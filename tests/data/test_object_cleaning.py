"""Every reason for which packing drops or changes objects, as each format of annotations can have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swinv2_train.data.object_cleaning import CHANGED, DROPPED, Cleaning
from swinv2_train.data.object_rules import clean
from swinv2_train.data.object_store import Annotated
from swinv2_train.data.pack_objects import READERS
from tests.data.annotated import CATEGORIES, HEIGHT, WIDTH, annotation, write_coco

FAR = 10 * WIDTH
TRIANGLE = [4, 4, 12, 4, 12, 10]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [100, 20, 648]}
COCO: dict[str, list[dict[str, Any]]] = {
    "unknown image": [{"image_id": 9}],
    "unknown category": [{"category_id": 3}],
    "no box": [{"bbox": None, "segmentation": None}],
    "no numbers": [{"bbox": [1, 2, None, 4]}],
    "outside": [
        {"bbox": [WIDTH, 2, 5, 5]}, {"bbox": [1e12, 2, 5, 5]}, {"bbox": [-9, 2, 8, 5]},
        {"segmentation": [[WIDTH, 2, WIDTH + 5, 2, WIDTH + 5, 8]]}, {"segmentation": [[1, 2, FAR, 2, FAR, 8]]},
        {"segmentation": [FAR, 2, FAR + 5, 2, FAR + 5, 8], "bbox": ...}, {"segmentation": [[1, -9, 5, -9, 5, -2]]},
    ],
    "degenerate": [{"bbox": [1, 2, 0.5, 5]}, {"bbox": [WIDTH - 0.5, 2, 5, 5]}],
    "reversed": [{"bbox": [9, 9, -5, -5]}],
    "no bndbox": [],  # of VOC alone
    "mask": [
        {"segmentation": [[1, 2, 3, 4]]}, {"segmentation": [[1, 2, 3, 4, 5, None]]}, {"segmentation": "text"},
        {"segmentation": RUNS | {"counts": [1, 2]}}, {"segmentation": RUNS | {"counts": "b'T3d0Xd0'"}},
    ],
    "empty mask": [{"segmentation": RUNS | {"counts": [HEIGHT * WIDTH]}}],
    "mask size": [{"segmentation": RUNS | {"size": [WIDTH, HEIGHT]}}],
    "repeated": [{"id": 1}],
    "ignored": [{"ignore": 1}],
    "clipped": [{"bbox": [-5, 2, 10, 5]}, {"bbox": [1, 2, 1e12, 5]}],
    "polygon": [{"segmentation": [TRIANGLE, [1, 2, 3, 4]]}],
    "part outside": [{"segmentation": [TRIANGLE, [FAR, 2, FAR + 5, 2, FAR + 5, 8]]}],
    "area": [{"area": ...}, {"area": None}, {"area": -1}, {"area": 0}],
    "iscrowd": [{"iscrowd": ...}],
    "id": [{"id": 1, "bbox": [5, 5, 5, 5]}],
}  # fmt: skip
"""By reason: changes of a sound annotation."""
CSV = {
    "no numbers": ["nan,2,5,5,dog", "1,2,inf,5,dog"],
    "outside": [f"{WIDTH},2,5,5,dog", "1e12,2,5,5,dog", "-9,2,8,5,dog"],
    "degenerate": ["1,2,0,5,dog", f"{WIDTH - 0.5},2,5,5,dog"],
    "reversed": ["1,2,5,-5,dog"],
    "clipped": ["-5,2,10,5,dog", "1,2,1e12,5,dog"],
}
"""By reason: rows. Other reasons are about keys that a CSV does not have."""
VOC = {
    "no bndbox": [""],
    "no numbers": ["<bndbox><xmin/><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"],
    "outside": [(WIDTH + 1, 2, WIDTH + 9, 8), (-9, 2, -1, 8)],
    "degenerate": [(5, 2, 4, 8)],  # both sides inclusive: no pixel
    "reversed": [(9, 9, 2, 2)],
    "clipped": [(-5, 2, 8, 8), (1, 2, WIDTH + 9, 8)],
}
"""By reason: boxes. A file has neither ids nor masks, and lists its own image and categories."""


def kinds(format_: str, place: Path) -> set[str]:
    """The reasons that are counted for an image."""
    read, total = READERS[format_](place, None), Cleaning()
    total.merge(read.cleaning)
    for image in read.images:
        source = Annotated(image.name, image.id, image.size, read.store.of_image(image.number))
        total.merge(clean(source, (HEIGHT, WIDTH), 1)[1])
    return set(total.counts)


def write(format_: str, given: Any, root: Path) -> Path:
    """A file of one sound object and another one."""
    if format_ == "coco":
        sound = annotation(1, 1, bbox=[2, 3, 10, 8])
        other = {key: value for key, value in (sound | {"id": 2} | given).items() if value is not ...}
        image = {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}
        return write_coco(root, {"images": [image], "annotations": [sound, other], "categories": CATEGORIES})
    if format_ == "boxes":
        (root / "boxes.csv").write_text(f"image,x,y,w,h,label\na.jpg,2,3,10,8,dog\na.jpg,{given}\n")
        return root / "boxes.csv"
    (root / "voc").mkdir()
    sound, other = (voc_box(box) if isinstance(box, tuple) else box for box in ((3, 4, 12, 11), given))
    objects = "".join(f"<object><name>dog</name>{box}</object>" for box in (sound, other))
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    (root / "voc" / "a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return root / "voc"


def voc_box(box: tuple[int, int, int, int]) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return f"<bndbox>{''.join(f'<{side}>{value}</{side}>' for side, value in sides)}</bndbox>"


@pytest.mark.parametrize(
    ("format_", "kind", "given"),
    [
        (name, kind, given)
        for name, table in (("coco", COCO), ("boxes", CSV), ("voc", VOC))
        for kind, cases in table.items()
        for given in cases
    ],
)
def test_every_object_is_counted_under_its_own_reason(tmp_path: Path, format_: str, kind: str, given: Any) -> None:
    with_id = {"id"} if kind == "id" else {kind}
    assert kinds(format_, write(format_, given, tmp_path)) == with_id


def test_the_table_has_every_reason() -> None:
    assert COCO.keys() == DROPPED.keys() | CHANGED.keys()
    assert CSV.keys() | VOC.keys() <= COCO.keys()
