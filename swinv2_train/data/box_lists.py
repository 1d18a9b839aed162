"""Boxes in a CSV: one row per box, with the image, the four numbers, and the label."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.data.box_check import BoxCheck
from swinv2_train.data.card_objects import Category
from swinv2_train.data.category_table import category_table
from swinv2_train.data.errors import DataError
from swinv2_train.data.object_store import Annotations, ListedImage, StoreWriter
from swinv2_train.data.pack_lists import LABEL_NAMES, PATH_NAMES

_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_EXTENTS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("xmin", "ymin", "width", "height"))
_FORM = "image_path,xmin,ymin,xmax,ymax,label or image,x,y,width,height,label"
_OUTLIER = 1e7  # no image is as large, and float32 is no longer exact to a pixel


def read_boxes(path: Path, known: Sequence[Category] | None) -> Annotations:
    """Read a CSV with a header, in any order of its columns and with any usual separator.

    A row without numbers, or with four zeros, only lists its image, which may have no objects.

    Args:
        known: categories of an earlier split, whose numbers are kept.

    Raises:
        DataError: naming line and column of what is not understood.
    """
    rows = _rows(path)
    header = [cell.lower() for cell in next(rows, (0, []))[1]]
    places, corners = _columns(path, header)
    # The numbers of the categories depend on all names, so the rows are read twice.
    names = {name: None for _, cells in rows if (name := _box(cells, places)[1])}
    categories = category_table([Category(None, name) for name in names], known, str(path))
    numbers = {one.name: number for number, one in enumerate(categories)}
    images: dict[str, int] = {}
    writer, boxes = StoreWriter(), BoxCheck()
    rows = _rows(path)
    next(rows)
    for line, cells in rows:
        texts, label = _box(cells, places)
        image = cells[places[0]] if places[0] < len(cells) else ""
        if not image:
            raise DataError(f"{path}, line {line}, column {header[places[0]]}: it is empty")
        number = images.setdefault(image, len(images))
        values = [_number(path, line, header[column], text) for column, text in zip(places[1:5], texts, strict=True)]
        if not any(values):
            continue
        if not label:
            raise DataError(f"{path}, line {line}, column {header[places[5]]}: the box has no label")
        box = [*values[:2], values[2] - values[0], values[3] - values[1]] if corners else values
        boxes.add(box, None)
        annotation: dict[str, Any] = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        writer.add(number, annotation | {"category": numbers[label]})
    if not names:
        raise DataError(f"--boxes {path} has no box; expected the columns {_FORM}")
    boxes.check(str(path))
    return Annotations(
        path, categories, [ListedImage(number, name) for name, number in images.items()], writer.finish()
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of the rows that are not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = max(",;\t|", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
    except OSError as error:
        raise DataError(f"--boxes {path} cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--boxes {path} is not a CSV in UTF-8 ({error})") from None


def _columns(path: Path, header: list[str]) -> tuple[list[int], bool]:
    """Return the places of image, four numbers, and label; and true if the last two numbers are right and bottom."""
    found = next((names for names in (*_CORNERS, *_EXTENTS) if set(names) <= set(header)), None)
    images = [place for place, name in enumerate(header) if name in PATH_NAMES]
    labels = [place for place, name in enumerate(header) if name in LABEL_NAMES]
    if found is None or len(images) != 1 or len(labels) != 1:
        raise DataError(f"--boxes {path}, line 1: expected the columns {_FORM}; found {','.join(header)!r:.100}")
    return [images[0], *map(header.index, found), labels[0]], found in _CORNERS


def _box(cells: list[str], places: Sequence[int]) -> tuple[list[str], str]:
    """Return the texts of the four numbers, and the label; cells that are missing at the end of a row are empty."""
    texts = [cells[place] if place < len(cells) else "" for place in places[1:]]
    return texts[:4], texts[4]


def _number(path: Path, line: int, column: str, text: str) -> float:
    """Return the value of a cell; 0 for an empty one, NaN for nan."""
    try:
        value = float(text or 0)
    except ValueError:
        raise DataError(f"{path}, line {line}, column {column}: {text!r:.40} is not a number") from None
    return value if abs(value) < _OUTLIER else math.nan
