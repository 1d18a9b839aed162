"""Annotations as programs write them: each defect is counted by its reason, or refused with one sentence."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.data.coco_json import read_coco
from swinv2_train.data.errors import BrokenSample, DataError, UnwritableData
from swinv2_train.data.object_cleaning import CHANGED, DROPPED, Cleaning
from swinv2_train.data.object_rules import clean
from swinv2_train.data.object_store import Annotated, StoreWriter
from swinv2_train.data.pack_objects import READERS
from swinv2_train.data.voc_xml import read_voc
from tests.data.annotated import CATEGORIES, HEIGHT, WIDTH, annotation, coco, write_coco

SIZE = (HEIGHT, WIDTH)
TRIANGLE = [4, 4, 12, 4, 12, 10]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [100, 20, 648]}


def cleaned(*annotations: dict[str, Any], size: tuple[int, int] | None = SIZE) -> tuple[list[dict[str, Any]], set[str]]:
    """The objects that are left, and the kinds of changes."""
    objects, cleaning = clean(Annotated("a.jpg", 1, size, annotations), SIZE, 1)
    return objects.to_json()["objects"], set(cleaning.counts)


def one(**change: Any) -> dict[str, Any]:
    return annotation(5, 1, segmentation=[TRIANGLE]) | {"category": 0} | change


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": None, "segmentation": None}, "no box"),
        ({"bbox": [1, 2, 3]}, "no numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "no numbers"),
        ({"bbox": [1, 2, 3, None]}, "no numbers"),
        ({"bbox": ["1", 2, 3, 4]}, "no numbers"),
        ({"bbox": {"x": 1}}, "no numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "no numbers"),
        ({"bbox": [WIDTH + 1, 2, 5, 5]}, "outside"),
        ({"bbox": [-9, 2, 8, 5]}, "outside"),
        ({"bbox": [1, 2, 0, 5]}, "degenerate"),
        ({"bbox": [1, 2, 5, -5]}, "reversed"),
        ({"bbox": [1, 2, 0.9, 5]}, "degenerate"),
        ({"bbox": [WIDTH - 0.5, 2, 5, 5]}, "degenerate"),
        ({"segmentation": [[1, 2, 3, 4]]}, "mask"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "mask"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "mask"),
        ({"segmentation": [[1, 2, 3, 4, 5, 2 * HEIGHT + 3]]}, "outside"),
        ({"segmentation": [[-WIDTH - 2, 2, 3, 4, 5, 6]]}, "outside"),
        ({"segmentation": [[-9, 2, -3, 2, -3, 6]]}, "outside"),
        ({"segmentation": [[1, HEIGHT, 9, HEIGHT, 5, HEIGHT + 4]]}, "outside"),
        ({"segmentation": "P1"}, "mask"),
        ({"segmentation": {}}, "mask"),
        ({"segmentation": RUNS | {"counts": [100, 20]}}, "mask"),
        ({"segmentation": RUNS | {"counts": [100, -20, 688]}}, "mask"),
        ({"segmentation": RUNS | {"counts": "zz"}}, "mask"),
        ({"segmentation": RUNS | {"size": [99, 9]}}, "mask size"),
        ({"segmentation": RUNS | {"counts": [HEIGHT * WIDTH]}}, "empty mask"),
        ({"ignore": 1}, "ignored"),
    ],
)
def test_objects_that_cannot_be_used_are_dropped_by_reason(change: dict[str, Any], kind: str) -> None:
    found, kinds = cleaned(one(id=1), one(**change))
    assert ([each["id"] for each in found], kinds) == ([1], {kind})
    assert Cleaning({kind: (1, ["x"])}).lost == (kind in DROPPED)


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        ({"bbox": [-5, 2, 10, 100]}, "clipped", {"bbox": [0, 2, 5, 22]}),
        ({"bbox": [-0.5, 2, 10, 5]}, None, {"bbox": [0, 2, 9.5, 5]}),
        ({"bbox": None}, None, {"bbox": [4, 4, 8, 6]}),
        ({"segmentation": [TRIANGLE, [1, 2, 3, 4]]}, "polygon", {"segmentation": [TRIANGLE]}),
        ({"segmentation": [TRIANGLE, [-9, 2, -3, 2, -3, 6]]}, "part outside", {"segmentation": [TRIANGLE]}),
        ({"segmentation": TRIANGLE}, None, {"segmentation": [TRIANGLE]}),
        ({"segmentation": RUNS}, None, {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "T3d0Xd0"}}),
        ({"area": None, "segmentation": RUNS}, "area", {"area": 20.0}),
        ({"area": 0, "segmentation": None}, "area", {"area": 80.0}),
        ({"area": float("nan")}, "area", {"area": 24.0}),
        ({"iscrowd": True}, None, {"iscrowd": 1}),
        ({"iscrowd": "0", "ignore": "0"}, None, {"iscrowd": 0}),
    ],
)
def test_other_forms_become_one(change: dict[str, Any], kind: str | None, expected: dict[str, Any]) -> None:
    (found,), kinds = cleaned(one(**change))
    assert kinds == ({kind} if kind else set())
    assert {key: found[key] for key in expected} == expected
    assert kinds <= CHANGED.keys()


def test_objects_without_a_mask_keep_their_box() -> None:
    for segmentation in (None, [], [[]]):
        (found,), kinds = cleaned(one(segmentation=segmentation))
        assert "segmentation" not in found
        assert kinds == set()


def test_missing_iscrowd_and_shared_ids() -> None:
    single = one()
    del single["iscrowd"]
    assert cleaned(single)[1] == {"iscrowd"}
    first, copy, other = (one(id_repeated="others", bbox=box) for box in ([1, 1, 4, 4], [1, 1, 4, 4], [2, 2, 4, 4]))
    found, kinds = cleaned(first, copy, other)
    assert ([each["id"] for each in found], kinds) == ([None, None], {"repeated", "id"})


def test_sizes_that_differ_break_the_image() -> None:
    with pytest.raises(BrokenSample, match="its annotations are for 24 x 32 pixels, and the image has 32 x 24"):
        cleaned(one(), size=(WIDTH, HEIGHT))
    with pytest.raises(BrokenSample, match="its annotations are for 9 x 8 pixels"):
        cleaned(one(segmentation={"size": [8, 9], "counts": [72]}), size=None)
    assert len(cleaned(one(), size=None)[0]) == 1


def with_change(key: str, number: int, **change: Any) -> dict[str, Any]:
    content = coco()
    content[key][number] = content[key][number] | change
    return content


def boxes(*numbers: list[float]) -> dict[str, Any]:
    content = coco()
    content["annotations"] = [annotation(n, 100, bbox=box) for n, box in enumerate(numbers)]
    return content


CORNERS = [[2, 3, 9, 9], [18, 13, 30, 20], [20, 2, 31, 12], [1, 14, 8, 22], [17, 15, 25, 23]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not JSON; annotations are"),
        ("<html>", "is not JSON; annotations are"),
        ("[]", "is a list, as results are; annotations are"),
        ("{}", "has no categories; annotations are"),
        ('{"categories": [{"id": 1, "na', r"is not intact JSON \(.*, after 0 categories\)"),
        (coco() | {"images": []}, "has no images"),
        (coco() | {"annotations": [3]}, r"annotations\[0\] is 3, not a JSON object"),
        (with_change("categories", 1, id=7), "two categories have the id 7; give each its own"),
        (with_change("categories", 1, name="cat"), "two categories have the name 'cat'; give each its own"),
        (with_change("categories", 1, name=None), r"categories\[1\] needs an id and a name"),
        (with_change("images", 1, id=None), r"images\[1\] needs an id and a file_name"),
        (with_change("images", 1, file_name=""), r"images\[1\] needs an id and a file_name"),
        (
            with_change("images", 1, id=100),
            "the image id 100 is that of a/0.jpg and of a/1.jpg; give each image its own",
        ),
        (with_change("annotations", 1, segments_info=[]), "is for panoptic segmentation"),
        (
            coco() | {"annotations": [annotation(3, 9)]},
            r"its only annotation cannot be used: the image is not listed",
        ),
        (coco() | {"annotations": [annotation(3, 100, 1)]}, "the category is not listed .*annotation 3: category_id 1"),
        (boxes(*CORNERS), r"look like \[left, top, right, bottom\], because 4 of 5 boxes leave their image"),
        (boxes(*[[0.1, 0.2, 0.3, 0.4]] * 4), r"fractions of the image; bbox must be \[x, y, width, height\] in pixels"),
        (boxes(*[[300, 200, 40, 40]] * 4), "4 of 4 boxes leave their image; bbox must be"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as error:
        read_coco(write_coco(tmp_path, content), None)
    assert "\n" not in str(error.value)


def test_annotations_without_image_or_category_are_counted(tmp_path: Path) -> None:
    content = coco()
    content["annotations"] += [annotation(n, 100 if n % 2 else "100", "2" if n % 2 else 2) for n in range(200, 225)]
    read = read_coco(write_coco(tmp_path, content), None)
    counts = read.cleaning.counts
    assert {kind: count for kind, (count, _) in counts.items()} == {"unknown image": 13, "unknown category": 12}
    assert counts["unknown category"][1][0] == "a/0.jpg: annotation 201: category_id '2'"
    assert len(counts["unknown image"][1]) == 10


def test_constants_of_python_become_null(tmp_path: Path) -> None:
    """Python writes NaN and Infinity; in texts they stay. A byte-order mark is skipped."""
    content = coco()
    names = ['NaN, "NaN",.jpg', "scan-NaN.jpg", "a\\NaN [Infinity] -Infinity.jpg"]
    for image, name in zip(content["images"], names, strict=False):
        image["file_name"] = name
    content["categories"][0]["name"] = "buzz Infinity toy"
    content["annotations"][0]["bbox"] = [1, float("nan"), float("-inf"), 4]
    content["annotations"][0]["area"] = float("inf")
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(content, indent=1))
    read = read_coco(path, None)
    first = read.store.of_image(1)[0]
    assert (first["bbox"], first["area"]) == ([1, None, None, 4], None)
    assert [image.name for image in read.images[:3]] == names[: len(read.images)]
    assert "buzz Infinity toy" in [category.name for category in read.categories]


def test_a_store_is_read_by_other_processes_and_removed_with_its_owner(tmp_path: Path) -> None:
    content = coco()
    content["annotations"].append(annotation(20, 100))
    read = read_coco(write_coco(tmp_path, content), None)
    copy = pickle.loads(pickle.dumps(read.store))
    assert [one["id"] for one in copy.of_image(2)] == [20, 21]
    assert [one.get("id_repeated") for one in copy.of_image(2)] == ["others", None]
    assert copy.of_image(3) == []
    assert [number for number, _ in copy.digests()] == [0, 1, 2, 4, 5]
    place = copy._path
    del copy
    assert place.exists()
    read.store = None  # type: ignore[assignment]
    assert not place.exists()


def test_memory_does_not_grow_with_the_annotations(tmp_path: Path) -> None:
    """The annotations come first, so that neither images nor categories are known when they are read."""
    content = coco()
    polygon = [round(0.37 * n, 2) for n in range(60)]
    many = [annotation(n, 100 + n % 6, segmentation=[polygon]) for n in range(2000)]
    path = write_coco(tmp_path, {"annotations": many} | {key: content[key] for key in ("images", "categories")})
    del many
    read_coco(path, None)  # imports and caches
    tracemalloc.start()
    read = read_coco(path, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read.store.of_image(5)) == 333
    assert path.stat().st_size > 900_000
    assert peak < path.stat().st_size / 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: expected the columns image_path,xmin,ymin,xmax,ymax,label or"),
        ("image,xmin,ymin,xmax,ymax\na,1,1,2,2\n", "line 1: expected the columns .*found 'image,xmin,ymin,xmax,ymax'"),
        ("image,xmin,ymin,xmax,ymax,label\n", "has no box; expected the columns"),
        ("image,x,y,w,h,label\na.jpg,1,2,x,4,t\n", "line 2, column w: 'x' is not a number"),
        ("image,x,y,w,h,label\na.jpg,1,2,3,4\n", "line 2: 5 of 6 columns; label is missing"),
        ("image,x,y,w,h,label\n,1,2,3,4,t\n", "line 2, column image: it is empty"),
        ("image,x,y,w,h,label\n" + "a.jpg,0.1,0.2,0.3,0.4,t\n" * 4, "its boxes are fractions of the image"),
        ('image,x,y,w,h,label\n"a.jpg,1,2,3,4,t\n', "is not a CSV in UTF-8"),
    ],
)
def test_lists_that_are_not_understood_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        READERS["boxes"](path, None)


def test_places_that_do_not_exist_are_named(tmp_path: Path) -> None:
    for kind, reason in (
        ("coco", "cannot be read .No such file"),
        ("boxes", "cannot be read .No such file"),
        ("voc", "is not a folder: name the folder of the XML files"),
    ):
        with pytest.raises(DataError, match=f"--{kind} {tmp_path}/none {reason}"):
            READERS[kind](tmp_path / "none", None)
    (tmp_path / "a.xml").write_text("<html/>")
    with pytest.raises(DataError, match=r"its only XML file has no object.*it is <html>, not <annotation>"):
        read_voc(tmp_path, None)


def test_a_full_temporary_folder_is_named() -> None:
    writer = StoreWriter()
    writer._run("PRAGMA max_page_count = 4")
    with pytest.raises(UnwritableData, match=r"by image in .* \(database or disk is full\): set TMPDIR to a folder"):
        list(map(writer.add, range(1000), [{"category": 0, "bbox": [1, 2, 3, 4]}] * 1000))


def test_ids_may_be_texts_or_whole_floats(tmp_path: Path) -> None:
    content = coco()
    content["images"][0]["id"] = 100.0
    content["categories"] = [{"id": "b", "name": "x"}, {"id": "a", "name": "y"}, {"id": 3, "name": "z"}]
    content["annotations"] = [annotation(1, 100, "a", id=[]), annotation(2, 100, 3, image_id=100.0, id=2.0)]  # type: ignore[arg-type]
    read = read_coco(write_coco(tmp_path, content), None)
    assert [one.name for one in read.categories] == ["z", "y", "x"]
    assert [(one["category"], one["id"]) for one in read.store.of_image(0)] == [(1, None), (0, 2)]
    assert repr(read.images[0].id) == "100"
    assert len(CATEGORIES) == 3
