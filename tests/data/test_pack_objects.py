"""Boxes and masks are packed with their images: in one form, once, and what cannot be used is counted by reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pycocotools import mask as judge
from pycocotools.coco import COCO

from swinv2_train.data.card import Card
from swinv2_train.data.card_objects import Category
from swinv2_train.data.errors import DataError
from swinv2_train.data.inspect import inspect
from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.object_masks import bitmap
from swinv2_train.data.pack import OBJECTS_FILE, PackOptions, PackRun, pack
from swinv2_train.data.pack_objects import ObjectsOption
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.tiling import Tiling
from tests.data.annotated import (
    CATEGORIES,
    HEIGHT,
    WIDTH,
    annotation,
    coco,
    objects_of,
    packed,
    write_coco,
    write_images,
)
from tests.data.label_maps import NAMES, png
from tests.data.label_maps import labels as label_map
from tests.data.packed import SMALL, open_set, tars
from tests.data.samples import pixels


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def test_annotations_become_objects_with_contiguous_categories(tmp_path: Path, images: Path) -> None:
    """Ids with gaps are numbered by value; empty images stay; the card and `inspect` count the same."""
    content = coco()
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 20, 648]}}
    report = packed(images, write_coco(tmp_path, content), tmp_path / "out")
    assert (report.complete, report.broken, report.notes, report.unlabeled) == (True, [], [], 0)
    assert report.warnings == []
    shards = open_set(tmp_path / "out")
    assert list(shards.read(0, ("image", "objects.json", "json")).members) == ["image", "objects.json"]
    found = objects_of(shards)
    assert {key: len(one) for key, one in found.items()} == {f"a/{n}": n % 3 for n in range(6)}
    assert {one.image_id for one in found.values()} == set(range(100, 106))
    one = found["a/2"]
    assert (one.size, one.ids, one.boxes.tolist()) == ((24, 32), (20, 21), [[2, 3, 12, 11], [3, 3, 13, 11]])
    assert (one.categories.tolist(), one.masks[0]) == ([2, 1], annotation(20, 0)["segmentation"])
    crowd = found["a/1"]
    assert (crowd.crowd.tolist(), crowd.areas.tolist()) == ([True], [60.0])
    for card in (report.cards["train"], shards.card, inspect(shards).card):
        assert card is not None
        facts = card.objects
        assert facts is not None
        assert facts.categories == [Category(2, "dog", "animal"), Category(7, "cat", "animal"), Category(90, "kite")]
        assert (card.class_names, card.num_classes) == (["dog", "cat", "kite"], 3)
        assert (facts.objects, facts.with_category) == ({0: 1, 1: 2, 2: 2}, {0: 1, 1: 2, 2: 2})
        assert (facts.images, facts.empty, facts.largest, facts.crowd) == (6, 3, 2, 1)
        assert facts.largest_image == next(key for key, objects in found.items() if (~objects.crowd).sum() == 2)
        assert (facts.masks, facts.all_masks, facts.small, facts.medium, facts.large) == (5, True, 5, 0, 0)
    again = Card.from_json(json.loads(json.dumps(shards.card.to_json())))  # type: ignore[union-attr]
    assert again == shards.card
    assert dict(again.rows())["category 1, cat"] == "2 objects in 2 images"
    assert "objects" not in Card().to_json()
    for change in (
        {"crowd": -1},
        {"objects": {"0": "x"}},
        {"categories": [{"id": 1}]},
        {"masks": None},
        {"largest_image": 3},
    ):
        damaged = again.to_json()
        damaged["objects"] |= change
        with pytest.raises(ValueError, match=r"^objects cannot be read"):
            Card.from_json(damaged)
    earlier = again.to_json()
    del earlier["objects"]["largest_image"]
    assert Card.from_json(earlier).objects == replace(again.objects, largest_image=None)  # type: ignore[type-var]


def test_the_order_of_keys_and_entries_changes_nothing(tmp_path: Path, images: Path) -> None:
    content = coco()
    packed(images, write_coco(tmp_path, content), tmp_path / "one")
    turned = {key: content[key][::-1] for key in ("annotations", "categories", "images")}
    turned["annotations"] = content["annotations"]
    packed(images, write_coco(tmp_path, turned), tmp_path / "two", how=PackRun(workers=1))
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    assert (tmp_path / "one/train.dataset.json").read_bytes() == (tmp_path / "two/train.dataset.json").read_bytes()


def test_packing_is_resumed_and_follows_changed_annotations(tmp_path: Path, images: Path) -> None:
    content = coco()
    content["annotations"].append(annotation(77, 101, bbox=[40, 2, 3, 3]))
    path = write_coco(tmp_path, content)
    options = replace(SMALL, max_count=2)
    report = packed(images, path, tmp_path / "one", options, eval_share=0.4)
    assert report.num_shards == 3
    packed(images, path, tmp_path / "two", options, eval_share=0.4)
    (tmp_path / "two" / "train-000001.tar").unlink()
    resumed = packed(images, path, tmp_path / "two", options, eval_share=0.4)
    assert resumed.num_reused == 2
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    assert resumed.cleaning.counts == report.cleaning.counts != {}
    assert resumed.cards["train"].objects == report.cards["train"].objects
    content["annotations"][0]["bbox"][0] = 4.0
    after = packed(images, write_coco(tmp_path, content), tmp_path / "two", options, eval_share=0.4)
    assert after.num_reused == 2
    found = objects_of(open_set(tmp_path / "two", "*.tar"))
    assert found["a/1"].boxes[0].tolist() == [4, 3, 14, 11]


def test_resize_scales_boxes_areas_and_masks(tmp_path: Path, images: Path) -> None:
    content = coco()
    square = np.zeros((HEIGHT, WIDTH), np.uint8)
    square[4:12, 8:16] = 1
    counts = judge.encode(np.asfortranarray(square))["counts"].decode()
    content["annotations"] = [
        annotation(1, 100, bbox=[8, 4, 8, 8], area=64, segmentation={"size": [HEIGHT, WIDTH], "counts": counts}),
        annotation(2, 101, bbox=[8, 4, 8, 8], area=64, segmentation=[[8, 4, 16, 4, 16, 12, 8, 12]]),
    ]
    packed(images, write_coco(tmp_path, content), tmp_path / "out", replace(SMALL, resize=16))
    shards = open_set(tmp_path / "out")
    found = objects_of(shards)
    for key in ("a/0", "a/1"):
        one = found[key]
        assert (one.size, one.boxes.tolist(), one.areas.tolist()) == ((12, 16), [[4, 2, 8, 6]], [16.0])
        assert one.masks[0] is not None
        assert np.argwhere(bitmap(one.masks[0], one.size)).tolist() == [
            [y, x] for y in range(2, 6) for x in range(4, 8)
        ]
    assert found["a/1"].masks[0] == [[4, 2, 8, 2, 8, 6, 4, 6]]
    assert inspect(shards).complete


def test_tiles_have_the_visible_parts(tmp_path: Path) -> None:
    """Boxes and masks are cut; objects of which a tile shows less than a tenth, or less than a pixel, are left out."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    tifffile.imwrite(folder / "s.tif", pixels(0, 48, 64), tile=(16, 16), photometric="rgb")
    (folder / "small.png").write_bytes(png(pixels(1, 20, 30)))
    square = np.zeros((48, 64), np.uint8)
    square[10:40, 28:34] = 1
    rle = judge.encode(np.asfortranarray(square))
    images = [
        {"id": 5, "file_name": "s.tif", "height": 48, "width": 64},
        {"id": 6, "file_name": "small.png", "height": 20, "width": 30},
    ]
    box = {"segmentation": ..., "area": 100}
    annotations = [
        annotation(1, 5, bbox=[2, 3, 10, 10], **box),
        annotation(2, 5, bbox=[28, 3, 10, 10], **box),
        annotation(3, 5, bbox=[31.5, 20, 20, 5], **box),  # half a pixel of it is in the first tile
        annotation(4, 5, bbox=[30, 40, 30, 4], **box),  # less than a tenth of it is in the left tile
        annotation(
            5, 5, bbox=[28, 10, 6, 30], area=180, segmentation={"size": [48, 64], "counts": rle["counts"].decode()}
        ),
        annotation(6, 5, bbox=[20, 20, 24, 8], area=96, segmentation=[[20, 20, 44, 20, 20, 28]]),
        annotation(7, 6, bbox=[1, 1, 8, 8], **box),
        annotation(8, 5, bbox=[70, 1, 8, 8], **box),
    ]
    path = write_coco(tmp_path, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    report = packed(folder, path, tmp_path / "out", replace(SMALL, tile=Tiling(32)), how=PackRun(workers=0))
    assert report.cleaning.counts == {"outside": (1, [f"{folder}/s.tif: annotation 8"])}  # once, not in every tile
    found = objects_of(open_set(tmp_path / "out"))
    assert set(found) == {"s_y00000_x00000", "s_y00000_x00032", "s_y00016_x00000", "s_y00016_x00032", "small"}
    first, right = found["s_y00000_x00000"], found["s_y00000_x00032"]
    assert (first.image_id, first.ids, found["small"].image_id, found["small"].ids) == (None, (None,) * 4, 6, (7,))
    assert first.boxes.tolist() == [[2, 3, 12, 13], [28, 3, 32, 13], [28, 10, 32, 32], [20, 20, 32, 28]]
    assert first.areas.tolist()[:3] == [100, 40, pytest.approx(180 * 88 / 180)]
    assert right.boxes.tolist()[0] == [0, 3, 6, 13]
    assert found["s_y00016_x00000"].boxes.tolist()[-1][:2] == [20, 4]
    assert not any(box[0] >= 30 and box[2] == 32 and box[3] - box[1] == 4 for box in first.boxes.tolist())
    polygon = judge.decode(judge.merge(judge.frPyObjects([[20, 20, 44, 20, 20, 28]], 48, 64)))
    for (top, left), one in {(0, 0): first, (0, 32): right}.items():
        part = square[top : top + 32, left : left + 32]
        masks = [mask for mask in one.masks if mask is not None]
        assert bitmap(masks[0], one.size).tolist() == part.tolist()
        # Rasterized in the tile, a cut polygon may differ by a pixel at the border.
        assert np.abs(bitmap(masks[1], one.size).astype(int) - polygon[top : top + 32, left : left + 32]).sum() <= 2
    assert inspect(open_set(tmp_path / "out")).complete


def test_packed_masks_are_those_that_the_judge_reads(tmp_path: Path, images: Path) -> None:
    """Every form of a segmentation in one file, also read by pycocotools."""
    size = [HEIGHT, WIDTH]
    noise = (np.random.default_rng(0).random(size) < 0.3).astype(np.uint8)
    noise[0, 0] = 0
    text = judge.encode(np.asfortranarray(noise))["counts"].decode()
    changes = np.flatnonzero(np.diff(noise.ravel(order="F"))) + 1
    runs = np.diff(np.concatenate([[0], changes, [noise.size]])).tolist()
    forms = [
        [[2, 2, 12.5, 3, 9, 14]],
        [[2, 2, 12, 3, 9, 14], [20, 5, 30, 5, 30, 20, 20, 20], [-4, 8, 6, 8, 6, 40]],
        {"size": size, "counts": runs},
        {"size": size, "counts": text},
    ]
    content = coco()
    content["annotations"] = [annotation(n + 1, 100 + n, segmentation=form) for n, form in enumerate(forms)]
    path = write_coco(tmp_path, content)
    packed(images, path, tmp_path / "out")
    truth, found = COCO(str(path)), objects_of(open_set(tmp_path / "out"))
    for n in range(len(forms)):
        mask = found[f"a/{n}"].masks[0]
        assert mask is not None
        assert bitmap(mask, (HEIGHT, WIDTH)).tolist() == truth.annToMask(truth.anns[n + 1]).tolist()


def test_shards_are_packed_again_with_their_objects(tmp_path: Path, images: Path) -> None:
    first = packed(images, write_coco(tmp_path, coco()), tmp_path / "out")
    again = pack(str(tmp_path / "out"), tmp_path / "again", PackOptions(max_count=4, resize=16))
    assert (again.complete, again.notes, again.cleaning.counts) == (True, [], {})
    before, after = (objects_of(open_set(tmp_path / name)) for name in ("out", "again"))
    assert {key: one.ids for key, one in before.items()} == {key: one.ids for key, one in after.items()}
    assert after["a/2"].boxes.tolist() == (before["a/2"].boxes / 2).tolist()
    assert again.cards["train"].class_names == ["dog", "cat", "kite"]
    assert again.cards["train"].objects.categories == first.cards["train"].objects.categories  # type: ignore[union-attr]
    (tmp_path / "list.csv").write_text("path\nimages/a/0.jpg\n")
    for name in ("out", "out/train-000000.tar", "list.csv"):
        with pytest.raises(DataError, match=rf"--coco is for a folder of images, and .*{name} is a list or shards"):
            packed(tmp_path / name, tmp_path / "annotations.json", tmp_path / "twice")


def test_objects_and_label_maps_are_packed_together(tmp_path: Path, images: Path) -> None:
    """As a semantic branch needs: the names are those of the categories, and label maps keep their own numbers."""
    maps = tmp_path / "maps" / "a"
    maps.mkdir(parents=True)
    for n in range(6):
        (maps / f"{n}.png").write_bytes(png(label_map(n, HEIGHT, WIDTH)))
    place = write_coco(tmp_path, coco())
    source = open_source(
        str(images),
        classes=False,
        seed=0,
        labels=LabelMaps(str(maps.parent), LabelRules((*NAMES, "sky"), 255)),
        objects=ObjectsOption("coco", str(place)),
    )
    report = pack(source, tmp_path / "out", SMALL)
    assert report.complete
    shards = open_set(tmp_path / "out")
    assert list(shards.read(0, ("image", "seg.png", "objects.json")).members) == ["image", "seg.png", "objects.json"]
    found = inspect(shards)
    assert found.complete
    assert found.card.class_names == ["dog", "cat", "kite"]
    assert found.card.label_maps == report.cards["train"].label_maps
    again = pack(str(tmp_path / "out"), tmp_path / "again", SMALL)
    assert again.complete
    assert again.cards["train"].label_maps == found.card.label_maps


def test_images_and_annotations_without_each_other_are_counted(tmp_path: Path, images: Path) -> None:
    content = coco(8)
    del content["images"][0]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 100]
    report = packed(images, write_coco(tmp_path, content), tmp_path / "out")
    assert not report.complete
    assert report.notes == [
        "images that the annotations do not list, left out: 1, a/0.jpg",
        "images of the annotations that are not in the folder: 2, a/6.jpg, a/7.jpg",
    ]
    assert [one["path"] for one in report.broken] == ["a/6.jpg", "a/7.jpg"]
    assert set(objects_of(open_set(tmp_path / "out"))) == {f"a/{n}" for n in range(1, 6)}


def test_annotations_of_another_size_skip_the_image(tmp_path: Path, images: Path) -> None:
    content = coco()
    content["images"][2]["width"] = 640
    report = packed(images, write_coco(tmp_path, content), tmp_path / "out")
    assert [one["reason"] for one in report.broken] == [
        "its annotations are for 640 x 24 pixels, and the image has 32 x 24"
    ]


@pytest.mark.parametrize("name", ["images/train2017/{}.jpg", "{}.jpg", "C:\\data\\a\\{}.jpg", "./a/{}.jpg"])
def test_images_are_found_by_path_or_unique_base_name(tmp_path: Path, images: Path, name: str) -> None:
    content = coco()
    for n, one in enumerate(content["images"]):
        one["file_name"] = name.format(n)
    assert packed(images, write_coco(tmp_path, content), tmp_path / "out").complete


def test_lvis_names_images_by_their_address(tmp_path: Path, images: Path) -> None:
    content = coco()
    for n, one in enumerate(content["images"]):
        one["coco_url"] = f"http://images.cocodataset.org/train2017/{n}.jpg"
        del one["file_name"]
    assert packed(images, write_coco(tmp_path, content), tmp_path / "out").complete


def test_a_later_split_keeps_the_numbers_of_the_first(tmp_path: Path, images: Path) -> None:
    """Names decide, whatever their ids; categories that are missing there keep the ids of the first split."""
    first = packed(images, write_coco(tmp_path, coco()), tmp_path / "out")
    content = coco()
    content["categories"] = [{"id": 1, "name": "kite"}, {"id": 2, "name": "cat"}]
    content["annotations"] = [annotation(1, 100, 1), annotation(2, 101, 2)]
    names = tmp_path / "out" / "train.dataset.json"
    report = packed(images, write_coco(tmp_path, content), tmp_path / "val", class_names=names)
    card = report.cards["train"]
    assert card.class_names == first.cards["train"].class_names
    assert card.objects is not None
    assert card.objects.categories == [Category(None, "dog", "animal"), Category(2, "cat"), Category(1, "kite")]
    found = objects_of(open_set(tmp_path / "val"))
    assert (found["a/0"].categories.tolist(), found["a/1"].categories.tolist()) == ([2], [1])
    content["categories"][0]["name"] = "plane"
    with pytest.raises(DataError, match="the category 'plane' is not among the 3 names of --class-names"):
        packed(images, write_coco(tmp_path, content), tmp_path / "other", class_names=names)


def test_dropped_objects_are_listed_in_a_file(tmp_path: Path, images: Path) -> None:
    content = coco()
    content["annotations"] += [annotation(200 + n, 101, bbox=[2, 2, 0.5, 4]) for n in range(12)]
    report = packed(images, write_coco(tmp_path, content), tmp_path / "out")
    assert not report.complete
    rows = [json.loads(line) for line in (tmp_path / "out" / OBJECTS_FILE).read_text().splitlines()]
    assert rows == [
        {
            "objects": 12,
            "reason": "the box is less than 1 pixel wide or high",
            "dropped": True,
            "first": [f"{images}/a/1.jpg: annotation {200 + n}" for n in range(10)],
        }
    ]
    packed(images, write_coco(tmp_path, coco()), tmp_path / "out")
    assert not (tmp_path / "out" / OBJECTS_FILE).exists()


@pytest.mark.parametrize("kind", ["coco", "boxes", "voc"])
def test_a_folder_without_images_is_named_as_such(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no images \(jpg, "):
        packed(tmp_path / "empty", write_coco(tmp_path, coco()), tmp_path / "out", kind=kind)


def test_other_annotations_of_the_same_images_are_not_replaced_unasked(tmp_path: Path, images: Path) -> None:
    first, other = write_coco(tmp_path, coco()), write_coco(tmp_path, coco(), "other.json")
    packed(images, first, tmp_path / "out")
    before = tars(tmp_path / "out")
    assert packed(images, first, tmp_path / "out").num_reused == 2
    with pytest.raises(
        DataError, match=r"out holds train of .* with --coco .*annotations.json, and .* has --coco .*other"
    ):
        packed(images, other, tmp_path / "out")
    with pytest.raises(DataError, match=r"annotations.json, and this command has no annotations: choose another"):
        pack(str(images), tmp_path / "out", SMALL)
    with pytest.raises(DataError, match="and this command has --classes: "):
        pack(str(images), tmp_path / "out", SMALL, classes=True)
    indexes = list(tmp_path.glob("out/*.index.*"))
    assert indexes
    for index in indexes:
        index.unlink()
    with pytest.raises(DataError, match="and this command has no annotations"):  # the manifest has it as well
        pack(str(images), tmp_path / "out", SMALL)
    assert tars(tmp_path / "out") == before
    packed(images, other, tmp_path / "out", how=PackRun(overwrite=True))
    with pytest.raises(DataError, match=r"with --coco .*other.json, and"):
        packed(images, first, tmp_path / "out")


def test_a_base_name_of_several_files_is_reported_as_such(tmp_path: Path, images: Path) -> None:
    (images / "b").mkdir()
    (images / "b/1.jpg").write_bytes((images / "a/1.jpg").read_bytes())
    content = coco()
    for one in content["images"]:
        one["file_name"] = Path(one["file_name"]).name
    report = packed(images, write_coco(tmp_path, content), tmp_path / "out")
    assert report.broken == [{"path": "1.jpg", "reason": "2 files have this name: a/1.jpg, b/1.jpg; give its path"}]
    assert report.notes[-1] == "images of the annotations of whose name there are several: 1, 1.jpg"
    content["images"] = [content["images"][1]]
    content["annotations"] = []
    with pytest.raises(DataError, match=r"for example, and 2 files have this name: a/1.jpg, b/1.jpg; give its path"):
        packed(images, write_coco(tmp_path, content), tmp_path / "other")


@pytest.mark.parametrize("crowds", [0, 2])
def test_data_without_an_object_to_learn_are_packed_with_a_warning(tmp_path: Path, images: Path, crowds: int) -> None:
    content = coco()
    content["annotations"] = [annotation(n, 100 + n, iscrowd=1) for n in range(crowds)]
    report = packed(images, write_coco(tmp_path, content), tmp_path / "out")
    only = f"there are only crowd regions ({crowds})" if crowds else "no image has one"
    assert report.warnings == [f"train: no object can be learned: {only}"]
    card = report.cards["train"]
    assert dict(card.rows())["objects to learn"] == f"none: {only}"
    assert (card.num_samples, card.num_classes, report.complete) == (6, 3, True)
