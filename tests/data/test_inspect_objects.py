"""Packed boxes and masks are checked by swinv2-data inspect and drawn on its contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swinv2_train.data.contact_sheet import contact_sheet
from swinv2_train.data.inspect import inspect
from swinv2_train.data.overlays import ObjectOverlay
from tests.data.annotated import HEIGHT, WIDTH, coco, packed, write_coco, write_images
from tests.data.packed import open_set
from tests.data.samples import write_tar


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def test_inspect_names_objects_that_do_not_fit(tmp_path: Path, images: Path) -> None:
    packed(images, write_coco(tmp_path, coco()), tmp_path / "out")
    shards = open_set(tmp_path / "out")
    members: list[tuple[str, bytes]] = []
    for index in range(shards.num_samples):
        raw = shards.read(index, ("image", "objects.json"))
        content = json.loads(raw.members["objects.json"])
        if raw.key == "a/1":
            content["objects"][0]["category"] = 3
        if raw.key == "a/2":
            content["objects"][0]["bbox"] = [20, 3, 13, 5]
        if raw.key == "a/3":
            content["width"] = 99
        if raw.key == "a/4":
            content["objects"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "P1"}
        members.append((f"{raw.key}.jpg", raw.data))
        if raw.key != "a/0":
            members.append((f"{raw.key}.objects.json", json.dumps(content).encode()))
    bad = tmp_path / "bad"
    write_tar(bad / "train-000000.tar", members)
    damaged = open_set(bad)
    damaged.card = shards.card
    found = inspect(damaged)
    assert dict(sorted((name.rpartition("/")[2], reason) for name, reason in found.label_problems)) == {
        "0": "it has no member objects.json",
        "1": "objects.json: object 0: its category 3 is not one of the 3 on the card",
        "2": "objects.json: object 0: its box [20.0, 3.0, 33.0, 8.0] leaves the image of 32 x 24 pixels",
        "3": "objects.json is for 99 x 24 pixels, and the image has 32 x 24",
        "4": "objects.json: object 0: the counts of its mask do not fill an image of 32 x 24 pixels",
    }
    assert (found.complete, found.labeled) == (False, 1)


def test_the_contact_sheet_draws_boxes_masks_and_names(tmp_path: Path, images: Path) -> None:
    content = coco()
    content["annotations"][0] |= {"iscrowd": 1}
    packed(images, write_coco(tmp_path, content), tmp_path / "out")
    colors = [(255, 0, 1), (0, 255, 1), (0, 1, 255)]
    overlay = ObjectOverlay(lambda number: colors[number], ["dog", "cat", "kite"])
    contact_sheet(open_set(tmp_path / "out"), tmp_path / "sheet.png", num_samples=6, overlays=[overlay])
    drawn = {tuple(color) for color in np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3).tolist()}
    assert drawn.issuperset(colors[:1] + colors[1:])
    assert overlay.drawn == {0, 1, 2}
