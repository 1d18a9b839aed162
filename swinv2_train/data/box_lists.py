"""Boxes in a CSV: one row per box, with the image, the four numbers, and the label."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from swinv2_train.data.box_check import BoxCheck
from swinv2_train.data.card_objects import Category
from swinv2_train.data.category_table import category_table
from swinv2_train.data.errors import DataError
from swinv2_train.data.object_store import Annotations, ListedImage, StoreWriter
from swinv2_train.data.pack_lists import LABEL_NAMES, PATH_NAMES

_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_EXTENTS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("xmin", "ymin", "width", "height"))
_FORM = "image_path,xmin,ymin,xmax,ymax,label or image,x,y,width,height,label"


def read_boxes(path: Path, known: Sequence[Category] | None) -> Annotations:
    """Read a CSV with a header, in any order of its columns and with any usual separator.

    A row without numbers, or with four zeros, only lists its image, which may have no objects.

    Args:
        known: categories of an earlier split, whose numbers are kept.

    Raises:
        DataError: naming line and column of what is not understood.
    """
    # The numbers of the categories depend on all names, so the rows are read twice.
    names = dict.fromkeys(label for _, box, label in _parsed(path) if box is not None)
    if not names:
        raise DataError(f"--boxes {path} has no box; expected the columns {_FORM}")
    categories, places = category_table([Category(None, name) for name in names], known, str(path))
    numbers = dict(zip(names, places, strict=True))
    images: dict[str, int] = {}
    writer, boxes = StoreWriter(), BoxCheck()
    for image, box, label in _parsed(path):
        number = images.setdefault(image, len(images))
        if box is not None:
            boxes.add(box, None)
            writer.add(number, {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category": numbers[label]})
    boxes.check(str(path))
    listed = [ListedImage(number, name) for name, number in images.items()]
    return Annotations(path, categories, listed, writer.finish())


def _parsed(path: Path) -> Iterator[tuple[str, list[float] | None, str]]:
    """Yield image, box as [x, y, width, height], and label of each row; None for a row that only lists its image."""
    rows = _rows(path)
    header = [cell.lower() for cell in next(rows, (0, []))[1]]
    places, corners = _columns(path, header)
    for line, cells in rows:
        # Cells that are missing at the end of a row are empty.
        image, *texts, label = (cells[place] if place < len(cells) else "" for place in places)
        if not image:
            raise DataError(f"{path}, line {line}, column {header[places[0]]}: it is empty")
        values = [_number(path, line, header[place], text) for place, text in zip(places[1:5], texts, strict=True)]
        if not any(values):
            yield image, None, label
            continue
        if not label:
            raise DataError(f"{path}, line {line}, column {header[places[5]]}: the box has no label")
        yield image, [*values[:2], values[2] - values[0], values[3] - values[1]] if corners else values, label


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


def _number(path: Path, line: int, column: str, text: str) -> float:
    """Return the value of a cell; 0 for an empty one."""
    try:
        value = float(text or 0)
    except ValueError:
        raise DataError(f"{path}, line {line}, column {column}: {text!r:.40} is not a number") from None
    return value
