"""Tables of the classes of colors, or of stored values, in label maps: CSV with the columns r, g, b, class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swinv2_train.data.class_order import is_number
from swinv2_train.data.errors import DataError
from swinv2_train.reading import UnreadableError, decode_text
from swinv2_train.text import counted

_NO_CLASS = -1
_IGNORE = "ignore"
_CLASS_COLUMNS = ("class", "name", "label", "category")
_CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))
_VALUE_COLUMNS = ("value", "index", "gray", "id")
_HIGHEST = {True: 255, False: 65535}


@dataclass(frozen=True)
class ValueTable:
    """Class of each color or value."""

    colors: bool
    """True for colors; their keys are 65536 r + 256 g + b."""
    entries: tuple[tuple[int, int], ...]
    """(key, class number), or -1 for pixels without a class."""


@dataclass(frozen=True)
class ReadTable:
    """A table and the names of the classes."""

    values: ValueTable
    names: tuple[str, ...]


def read_table(path: Path, names: Sequence[str] | None) -> ReadTable:
    """Read a table with a header: r, g, b, and class, or value and class.

    Args:
        names: of the classes, in the order of their numbers; None: the names in the table, in its order. Either way
            `ignore` means no class.

    Raises:
        DataError: naming the line that is not understood.
    """
    try:
        text = decode_text(path.read_bytes())
    except (OSError, UnreadableError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"the table {path} cannot be read ({reason})") from None
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = [
        (number, [cell.strip() for cell in row])
        for number, row in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator), 1)
        if any(cell.strip() for cell in row)
    ]
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    channels, class_column = _columns(path, header)
    entries: dict[int, int] = {}
    lines: dict[int, int] = {}
    listed = list(names or ())
    for number, row in rows[1:]:
        where = f"the table {path}, line {number}"
        if len(row) < len(header):
            raise DataError(f"{where}: {len(row)} columns where the header has {len(header)}")
        key = 0
        for column in channels:
            key = key << 8 | _number(where, header[column], row[column], _HIGHEST[len(channels) == 3])
        entry = _class(where, row[class_column], listed, fixed=names is not None)
        if key in entries:
            shown = ",".join(row[column] for column in channels)
            raise DataError(f"{where}: {shown} is in line {lines[key]}, too: remove one of the two lines")
        entries[key], lines[key] = entry, number
    if not listed or not any(entry >= 0 for entry in entries.values()):
        raise DataError(f"the table {path} has no class: write a row for each color, such as 128,64,128,road")
    return ReadTable(ValueTable(len(channels) == 3, tuple(sorted(entries.items()))), tuple(listed))


def _columns(path: Path, header: list[str]) -> tuple[list[int], int]:
    """Return the columns of the color or value, and that of the class."""
    found = [next((i for i, name in enumerate(header) if name in words), None) for words in _CHANNELS]
    channels = [column for column in found if column is not None]
    values = [i for i, name in enumerate(header) if name in _VALUE_COLUMNS]
    classes = [i for i, name in enumerate(header) if name in _CLASS_COLUMNS]
    keys = channels if len(channels) == 3 else values[:1]
    if not keys or not classes or (len(channels) == 3 and values):
        raise DataError(
            f"the table {path}, line 1: expected a header r,g,b,class or value,class, found {','.join(header)!r:.80}"
        )
    return keys, classes[0]


def _number(where: str, name: str, text: str, highest: int) -> int:
    number = int(text) if is_number(text) else -1
    if not 0 <= number <= highest:
        raise DataError(f"{where}, column {name}: {text!r:.40} is not an integer from 0 to {highest}")
    return number


def _class(where: str, text: str, names: list[str], *, fixed: bool) -> int:
    """Return the number of a class, which is added to the names unless they are fixed."""
    if not text:
        raise DataError(f"{where}: the class is empty; write {_IGNORE} for pixels without a class")
    if text in names:
        return names.index(text)
    if text.lower() == _IGNORE:
        return _NO_CLASS
    if not fixed and is_number(text):
        raise DataError(
            f"{where}: class {text} has no name; add --classes-file FILE, or write names instead of numbers"
        )
    if not fixed:
        names.append(text)
        return len(names) - 1
    if is_number(text) and int(text) < len(names):
        return int(text)
    number = counted(len(names), "name")
    raise DataError(f"{where}: the class {text!r:.60} is not one of the names in --classes-file ({number})")
