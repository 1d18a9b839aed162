"""Images with objects for the tests of packing: a folder of small scenes and their annotations in COCO's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.objects import Objects
from swinv2_train.data.pack import PackOptions, PackReport, pack
from swinv2_train.data.pack_objects import ObjectsOption
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from tests.data.packed import SMALL
from tests.data.samples import encoded, pixels

HEIGHT, WIDTH = 24, 32
CATEGORIES = [
    {"id": 7, "name": "cat", "supercategory": "animal"},
    {"id": 2, "name": "dog", "supercategory": "animal"},
    {"id": 90, "name": "kite"},
]
"""Ids with gaps, out of order: dog is 0, cat 1, kite 2."""


def annotation(number: int, image: int, category: int = 2, **change: Any) -> dict[str, Any]:
    """An annotation of a box with a polygon and another part."""
    left, top = 2.0 + number % 5, 3.0
    one = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [left, top, 10.0, 8.0],
        "area": 60.0,
        "iscrowd": 0,
        "segmentation": [
            [left, top, left + 10, top, left + 10, top + 8],
            [left, top, left, top + 8, left + 4, top + 8],
        ],
    }
    return {key: value for key, value in (one | change).items() if value is not ...}


def coco(count: int = 6) -> dict[str, Any]:
    """Annotations of images a/0.jpg, ...: image n has n % 3 objects, and ids from 100."""
    images = [
        {"id": 100 + n, "file_name": f"a/{n}.jpg", "height": HEIGHT, "width": WIDTH, "license": 1} for n in range(count)
    ]
    objects = [
        annotation(10 * n + k, 100 + n, CATEGORIES[(n + k) % 3]["id"]) for n in range(count) for k in range(n % 3)
    ]
    return {
        "info": {"year": 2017},
        "images": images,
        "annotations": objects,
        "categories": [dict(one) for one in CATEGORIES],
    }


def write_images(root: Path, count: int = 6) -> Path:
    """Write root/images/a/0.jpg, ...; return root/images."""
    folder = root / "images" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n}.jpg").write_bytes(encoded(pixels(n, HEIGHT, WIDTH), quality=95))
    return folder.parent


def write_coco(root: Path, content: Any, name: str = "annotations.json") -> Path:
    path = root / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def packed(
    images: Path,
    place: Path,
    out: Path,
    options: PackOptions = SMALL,
    *,
    kind: str = "coco",
    class_names: Path | None = None,
    labels: LabelMaps | None = None,
    **how: Any,
) -> PackReport:
    """Pack a folder of images with its annotations."""
    option = ObjectsOption(kind, str(place), class_names)
    return pack(
        open_source(str(images), classes=False, seed=options.seed, out=out, objects=option, labels=labels),
        out,
        options,
        **how,
    )


def objects_of(shards: ShardSet) -> dict[str, Objects]:
    """The objects of every sample, by key."""
    raw: list[RawSample] = [shards.read(index, ("image", "objects.json")) for index in range(shards.num_samples)]
    return {one.key: Sample(one).objects() for one in raw}
