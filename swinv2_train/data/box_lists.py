"""Boxes in a CSV: one row per box, with the image, the four numbers, and the label."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from swinv2_train.data.box_check import BoxCheck
from swinv2_train.data.card_objects import Category
from swinv2_train.data.category_table import category_table
from swinv2_train.data.errors import DataError
from swinv2_train.data.object_cleaning import REVERSED, Cleaning
from swinv2_train.data.object_store import Annotations, ListedImage, StoreWriter
from swinv2_train.data.pack_lists import LABEL_NAMES, PATH_NAMES

_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_EXTENTS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("xmin", "ymin", "width", "height"))
_FOLDER = "it is one CSV, and --voc FOLDER reads a folder of XML files"
_FORM = "image_path,xmin,ymin,xmax,ymax,label or image,x,y,width,height,label"


_MOST_REVERSED = 0.5
"""Of the boxes, may have their right below their left; of more, the columns have another meaning."""


class _Row(NamedTuple):
    line: int
    image: str
    box: list[float] | None
    """x, y, width, and height; None if the row only lists its image."""
    label: str
    columns: tuple[str, ...]
    """Names of the columns of the box."""


def read_boxes(path: Path, known: Sequence[Category] | None) -> Annotations:
    """Read a CSV with a header, in any order of its columns and with any usual separator.

    A row without numbers, or with four zeros, only lists its image, which may have no objects. Boxes whose right is
    below their left, or bottom below top, are dropped and named by their lines.

    Args:
        known: categories of an earlier split, whose numbers are kept.

    Raises:
        DataError: naming line and column of what is not understood.
    """
    # The numbers of the categories depend on all names, so the rows are read twice.
    names = dict.fromkeys(row.label for row in _parsed(path) if row.box is not None)
    if not names:
        raise DataError(f"--boxes {path} has no box; expected the columns {_FORM}")
    categories, places = category_table([Category(None, name) for name in names], known, str(path))
    numbers = dict(zip(names, places, strict=True))
    images: dict[str, int] = {}
    writer, cleaning, reversed_boxes = StoreWriter(), Cleaning(), 0
    boxes: BoxCheck | None = None
    for row in _parsed(path):
        number = images.setdefault(row.image, len(images))
        if row.box is None:
            continue
        boxes = boxes or BoxCheck(f"its columns must be {', '.join(row.columns)}")
        boxes.add(row.box, None)
        if min(row.box[2:]) < 0:
            cleaning.add(REVERSED, f"line {row.line} of {path.name}")
            reversed_boxes += 1
            continue
        area = row.box[2] * row.box[3]
        writer.add(number, {"bbox": row.box, "area": area, "iscrowd": 0, "category": numbers[row.label]})
    assert boxes is not None  # there are names, so there are boxes
    boxes.check(str(path))
    if reversed_boxes > _MOST_REVERSED * boxes.count:
        first = cleaning.counts[REVERSED][1][0]
        raise DataError(
            f"{path}: {reversed_boxes:,} of its {boxes.count:,} boxes have a right below their left, or a bottom below "
            f"their top, the first in {first}; if the last two numbers are width and height, name their columns so"
        )
    listed = [ListedImage(number, name) for name, number in images.items()]
    return Annotations(path, categories, listed, writer.finish(), cleaning)


def _parsed(path: Path) -> Iterator[_Row]:
    """Yield the rows below the header. Raises DataError."""
    rows = _rows(path)
    header = [cell.lower() for cell in next(rows, (0, []))[1]]
    places, corners = _columns(path, header)
    columns = tuple(header[place] for place in places[1:5])
    for line, cells in rows:
        if len(cells) > len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} columns, and the header has {len(header)}; a text that contains "
                "the separator needs quotes"
            )
        # Programs leave out cells at the end of a row if they are empty, as they are in one that only lists an image.
        image, *texts, label = (cells[place] if place < len(cells) else "" for place in places)
        if not image:
            raise DataError(f"{path}, line {line}, column {header[places[0]]}: it is empty")
        values = [_number(path, line, name, text) for name, text in zip(columns, texts, strict=True)]
        if not any(values):
            yield _Row(line, image, None, label, columns)
            continue
        for name, text in zip((*columns, header[places[5]]), (*texts, label), strict=True):
            if not text and len(cells) < len(header):
                raise DataError(f"{path}, line {line}: {len(cells)} of {len(header)} columns; {name} is missing")
            if not text:
                raise DataError(f"{path}, line {line}, column {name}: it is empty, and the row has a box")
        if corners:
            values = [*values[:2], values[2] - values[0], values[3] - values[1]]
        yield _Row(line, image, values, label, columns)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of the rows that are not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = max(",;\t|", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            for row in reader:
                cells = [cell.strip() for cell in row]
                while cells and not cells[-1]:
                    cells.pop()
                if cells:
                    yield reader.line_num, cells
    except OSError as error:
        fix = f"; {_FOLDER}" if isinstance(error, IsADirectoryError) else ""
        raise DataError(f"--boxes {path} cannot be read ({error.strerror}){fix}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"--boxes {path} is not a CSV in UTF-8 ({error}): save it as one (in Excel: CSV UTF-8)"
        ) from None


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
