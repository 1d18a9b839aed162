"""Annotations in the XML of Pascal VOC: a file for each image, with a box and a name for each object."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from swinv2_train.data.box_check import BoxCheck
from swinv2_train.data.card_objects import Category
from swinv2_train.data.category_table import category_table
from swinv2_train.data.errors import DataError
from swinv2_train.data.object_cleaning import NO_BNDBOX, Cleaning
from swinv2_train.data.object_store import Annotations, ListedImage, StoreWriter

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(folder: Path, known: Sequence[Category] | None) -> Annotations:
    """Read all XML files of a folder, to any depth.

    VOC counts pixels from 1 and includes the last one, so a box over all 500 columns of an image is 1 to 500. Therefore
    `xmin` and `ymin` are lowered by 1. Objects with the flag `difficult` become crowd regions: as in VOC, they are
    neither learned nor counted as missed.

    Args:
        known: categories of an earlier split, whose numbers are kept.

    Raises:
        DataError: if the folder has no such files.
    """
    if not folder.is_dir():
        raise DataError(f"--voc {folder} is not a folder: name the folder of the XML files")
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise DataError(f"--voc {folder} holds no XML files: name the folder of the annotations")
    refused: list[tuple[str, str]] = []
    images: list[ListedImage] = []
    found: list[list[dict[str, Any]]] = []
    for file in files:
        try:
            image, objects = _read(file, folder, len(images))
        except (OSError, ElementTree.ParseError, ValueError) as error:
            refused.append((str(file), f"its XML cannot be read ({error})"))
            continue
        images.append(image)
        found.append(objects)
    if not any(found):
        first = f" ({refused[0][0]}: {refused[0][1]})" if refused else ""
        which = "its only XML file has no" if len(files) == 1 else f"none of its {len(files):,} XML files has an"
        raise DataError(f"--voc {folder}: {which} object of Pascal VOC{first}")
    names = dict.fromkeys(one["category"] for objects in found for one in objects)
    categories, places = category_table([Category(None, name) for name in names], known, str(folder))
    numbers = dict(zip(names, places, strict=True))
    writer, cleaning, boxes = StoreWriter(), Cleaning(), BoxCheck("bndbox must be xmin, ymin, xmax, and ymax")
    for number, objects in enumerate(found):
        for place, one in enumerate(objects):
            if "bbox" not in one:
                cleaning.add(NO_BNDBOX, f"{images[number].name}.xml: object {place}, {one['category']}")
                continue
            left, top, width, height = one["bbox"]
            boxes.add([left + 1, top + 1, width - 1, height - 1], None)  # the numbers of the file
            writer.add(number, one | {"category": numbers[one["category"]]})
    boxes.check(f"--voc {folder}")
    return Annotations(folder, categories, images, writer.finish(), cleaning, refused)


def _read(file: Path, folder: Path, number: int) -> tuple[ListedImage, list[dict[str, Any]]]:
    """Return the image of a file, and its objects with the names of their categories. Raises ValueError."""
    root = ElementTree.parse(file).getroot()
    if root.tag != "annotation":
        raise ValueError(f"it is <{root.tag}>, not <annotation>")
    stem = os.path.splitext(os.path.relpath(file, folder))[0]
    sides = [int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width")]
    size = (sides[0], sides[1]) if min(sides) > 0 else None
    return ListedImage(number, stem, size=size, other_name=root.findtext("filename") or ""), list(_objects(root))


def _objects(root: ElementTree.Element) -> Iterator[dict[str, Any]]:
    for one in root.findall("object"):
        name = (one.findtext("name") or "").strip()
        if not name:
            raise ValueError("an object has no name")
        texts = [one.findtext(f"bndbox/{side}") for side in _SIDES]
        annotation: dict[str, Any] = {
            "category": name,
            "iscrowd": int((one.findtext("difficult") or "0").strip() == "1"),
        }
        if None not in texts:
            left, top, right, bottom = (float(text or "nan") for text in texts)
            annotation["bbox"] = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        yield annotation
