"""Lists of images with their labels: CSV as spreadsheets and scripts write it, and JSON lines.

Separator, encoding, and columns are found in the file itself. Anything that is not understood is refused, with its line
and column.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import ARRAY_EXTENSIONS, extension, image_extensions
from swinv2_train.data.video_files import VIDEO_FILES
from swinv2_train.reading import UnreadableError, decode_text

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
PATH_NAMES = (
    "path", "paths", "file", "files", "filename", "file_name", "filenames", "filepath", "filepaths", "file_path",
    "image", "images", "img", "image_path", "img_path", "image_file", "image_name",
)  # fmt: skip
LABEL_NAMES = (
    "label", "class", "class_name", "classname", "category", "target", "cls", "label_name", "class_label", "species",
    "breed",
)  # fmt: skip
_SEVERAL_NAMES = ("labels", "classes", "categories", "tags", "targets")
_UNNAMED = re.compile(r"|index|unnamed: \d+|unnamed")
"""Names of the row numbers that pandas writes as a first column."""
_SEPARATORS = (",", "\t", ";", "|")
_NONE = "\x1f"  # a separator that occurs in no list: the whole line is the path
_LOOKED_AT = 200
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"(\d+)([.,](?!000$)0*)?", re.ASCII)
"""`1,000` is one or a thousand, so it is rejected."""
_SEPARATED = re.compile(r"[,|]|\S\s+\S")
_MISSING = frozenset(("nan", "null", "none", "na", "n/a", "<na>", "#n/a", "?", "-"))
Label = str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Row:
    """An image of a list."""

    line: int
    path: str
    """Path as written."""
    label: Label
    """Class; a tuple if the list has several for each image."""
    label_map: str | None = None
    """Path of its label map as written."""


@dataclass(frozen=True)
class ImageList:
    """Rows of a list in their order."""

    source: Path
    rows: list[Row]
    label_column: str = "label"
    notes: list[str] = field(default_factory=list)
    """Contents that are not read, one line each."""


def read_list(path: Path, label_maps: str | None = None) -> ImageList:
    """Read a list of images.

    CSV: columns separated by comma, tab, semicolon or bar, with a header (`path` or `file`, `filename`, `image`, ...;
    `label` or `class`, `category`, ...; `labels` for several, `a;b`) or as path[,label] without one. JSON lines:
    objects with the same names.

    Args:
        label_maps: column of the paths of label maps; labels are then not read.

    Raises:
        DataError: naming line and column of what is not understood.
    """
    text = _text(path)
    from_lines = path.suffix.lower() == ".jsonl"
    found = _from_json_lines(path, text, label_maps) if from_lines else _from_csv(path, text, label_maps)
    for kind, what in ((tuple, "list of labels"), (str, "label")):
        count = sum(isinstance(row.label, kind) for row in found.rows)
        if 0 < count < len(found.rows):
            first = next(row.line for row in found.rows if not isinstance(row.label, kind))
            some = f"{len(found.rows) - count} of {len(found.rows)} lines have no {what}"
            raise DataError(f"{path}: {some}, line {first} for one")
    return found


def class_labels(found: ImageList, rows: Sequence[Row]) -> list[Label]:
    """Return the labels of some rows of a list, with integers in their shortest form (`1.0` and `01` become `1`).

    Raises:
        DataError: for numbers that are not class numbers, and for missing values among numbers.
    """
    texts = {text for row in rows for text in _texts(row.label)}
    numeric = {text for text in texts if _NUMBER.fullmatch(text)}
    missing = {text for text in texts if text.lower() in _MISSING}
    allowed = numeric | missing == texts and bool(numeric)
    wrong = {text for text in missing if allowed or text.lower() == "nan"}
    if allowed:
        wrong |= {text for text in numeric if not _INTEGER.fullmatch(text)}
    for row in rows if wrong else ():
        for text in _texts(row.label):
            if text in wrong:
                what = "a missing value" if text in missing else "not a class number (0, 1, 2, ...)"
                raise DataError(
                    f"{found.source}, line {row.line}, column {found.label_column}: {text!r} is {what}; correct or "
                    "remove the line"
                )
    shortest = {text: str(int(match[1])) for text in texts if allowed and (match := _INTEGER.fullmatch(text))}

    def short(label: Label) -> Label:
        if isinstance(label, tuple):
            return tuple(dict.fromkeys(shortest.get(text, text) for text in label))
        return label if label is None else shortest.get(label, label)

    return [short(row.label) for row in rows]


def located(folder: Path, name: str) -> str:
    """Return the location of a path in a list; backslashes separate folders unless the path exists as written."""
    path = os.path.join(folder, name)
    if "\\" in name and not os.path.lexists(path):
        return os.path.join(folder, name.replace("\\", "/"))
    return path


def _texts(label: Label) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else () if label is None else (label,)


def _text(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except UnreadableError as error:
        raise DataError(f"{path}: {error} (in Excel: CSV UTF-8)") from None


def _cells(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of the rows that are not empty; empty cells at the end of a row are dropped.

    Raises csv.Error, with the line that the row begins in.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        begins = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise csv.Error(f"line {begins}: {error}") from None
        cells = [cell.strip() for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield begins, cells


def _from_csv(path: Path, text: str, label_maps: str | None) -> ImageList:
    directive = re.match(r"\s*sep=(.)[ \t]*(\r\n|\r|\n)", text)  # Excel's own way to name the separator
    body, above = (text[directive.end() :], 1) if directive else (text, 0)
    try:
        separator, header = _layout(path, body, [directive[1]] if directive else _SEPARATORS)
        rows = ((line + above, cells) for line, cells in _cells(body, separator))
        if label_maps is not None:
            return _with_label_maps(path, rows, header, label_maps)
        if header is None:
            return ImageList(path, list(_plain_rows(path, rows)), "2")
        return _table(path, rows, header)
    except csv.Error as error:
        raise DataError(f"{path}, {error} (quotes that do not match, or a cell that is too long)") from None


def _files() -> tuple[str, ...]:
    return (*image_extensions(), *ARRAY_EXTENSIONS, *VIDEO_FILES)


def _layout(path: Path, text: str, separators: Sequence[str]) -> tuple[str, list[str] | None]:
    """Return the separator and, if there is a header, the names of its columns in lower case."""
    heads: dict[str, list[list[str]]] = {}
    rows: list[list[str]]
    for separator in (*separators, _NONE):
        heads[separator] = rows = []
        with contextlib.suppress(csv.Error):  # the reading of the whole file raises it again
            rows.extend(cells for _, cells in itertools.islice(_cells(text, separator), _LOOKED_AT))
    names = {separator: [cell.lower() for cell in rows[0]] for separator, rows in heads.items() if rows}
    known = {separator: sum(map(_is_known, found)) for separator, found in names.items()}
    headers = [separator for separator, found in names.items() if set(found) & set(PATH_NAMES)]
    if headers:
        best = max(headers, key=lambda separator: known[separator])
        return best, names[best]

    def fit(separator: str) -> tuple[int, int, int]:
        rows = [cells for cells in heads[separator] if len(cells) <= 2]
        there = sum(os.path.lexists(located(path.parent, cells[0])) for cells in rows)
        return there, sum(extension(cells[0]) in _files() for cells in rows), sum(len(c) == 2 for c in rows)

    best = max(heads, key=fit)
    if fit(best)[:2] == (0, 0):  # neither files nor names of images
        best = next(iter(heads))
    first = heads[best][0] if heads[best] else []
    if first and extension(first[0]) not in _files() and not os.path.lexists(located(path.parent, first[0])):
        raise DataError(
            f"{path}, line 1: expected path or path,label, or a header with a column path (or file, filename, image), "
            f"found {best.join(first)!r}; if this is a header, rename the column of the files to path"
        )
    return best, None


def _is_known(name: str) -> bool:
    return name in PATH_NAMES or name in LABEL_NAMES or name in _SEVERAL_NAMES


def _plain_rows(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    for line, cells in rows:
        if len(cells) > 2 or not cells[0]:
            raise DataError(
                f"{path}, line {line}: expected path or path,label, found {','.join(cells)!r}; more columns need a "
                "header that names them"
            )
        yield Row(line, cells[0], cells[1] if len(cells) == 2 else None)


def _table(path: Path, rows: Iterator[tuple[int, list[str]]], header: list[str]) -> ImageList:
    """Rows under a header line, with the columns in any order."""
    place = _column(path, header, PATH_NAMES)
    label = _column(path, header, (*LABEL_NAMES, *_SEVERAL_NAMES))
    others = [name for i, name in enumerate(header) if i not in (place, label) and not _UNNAMED.fullmatch(name)]
    if label is None and others:
        raise DataError(
            f"{path}, line 1: the column {others[0]!r} is not known; name the column of the classes label (or labels, "
            "for several: a;b), or remove the columns other than path"
        )
    assert place is not None
    several = label is not None and header[label] in _SEVERAL_NAMES
    found = []
    next(rows)
    for line, cells in rows:
        if len(cells) > len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} columns where the header has {len(header)}; a text that contains "
                "the separator needs quotes"
            )
        cells += [""] * (len(header) - len(cells))
        if not cells[place]:
            raise DataError(f"{path}, line {line}, column {header[place]}: it is empty")
        text = cells[label] if label is not None else ""
        found.append(Row(line, cells[place], _parts(path, line, header[label or 0], text) if several else text or None))
    column = header[label] if label is not None else "label"
    if several:
        _check_separated(path, found, column)
    return ImageList(path, found, column, [f"{path}: columns that are not read: {', '.join(others)}"] if others else [])


def _with_label_maps(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: list[str] | None, column: str
) -> ImageList:
    """Rows with the path of an image and that of its label map."""
    name = column.lower()
    if header is None or name not in header:
        found = f"its columns are {', '.join(header)}" if header else "it has no header with names of columns"
        raise DataError(f"{path}: --labels {column} is not a column of this list, and {found}")
    place = _column(path, header, [one for one in PATH_NAMES if one != name])
    if place is None:
        raise DataError(f"{path}, line 1: no column names the images; call it image or path")
    label_map = header.index(name)
    next(rows)
    found_rows = []
    for line, cells in rows:
        cells += [""] * (len(header) - len(cells))
        if len(cells) > len(header) or not cells[place]:
            raise DataError(
                f"{path}, line {line}: expected a path in the column {header[place]}, and {len(header)} columns as in "
                f"the header; found {','.join(cells)!r:.80}"
            )
        found_rows.append(Row(line, cells[place], None, cells[label_map] or None))
    others = [one for i, one in enumerate(header) if i not in (place, label_map) and not _UNNAMED.fullmatch(one)]
    notes = [f"{path}: columns that are not read: {', '.join(others)}"] if others else []
    return ImageList(path, found_rows, header[label_map], notes)


def _column(path: Path, header: list[str], names: Sequence[str]) -> int | None:
    """Return the place of the only column with one of these names; None if there is none."""
    places = [i for i, name in enumerate(header) if name in names]
    if len(places) > 1:
        raise DataError(
            f"{path}, line 1: the columns {' and '.join(repr(header[i]) for i in places)} may both be the "
            f"{names[0]}; keep one of them"
        )
    return places[0] if places else None


def _parts(path: Path, line: int, column: str, text: str) -> tuple[str, ...]:
    if text.startswith(("[", "{")):
        raise DataError(f"{path}, line {line}, column {column}: {text!r:.60} is not a list of classes; write a;b")
    return tuple(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))


def _check_separated(path: Path, rows: list[Row], column: str) -> None:
    """Refuse a column of several classes that are separated by something other than semicolons."""
    if any(len(_texts(row.label)) > 1 for row in rows):
        return
    for row in rows:
        for text in _texts(row.label):
            if _SEPARATED.search(text):
                raise DataError(
                    f"{path}, line {row.line}, column {column}: separate the classes {text!r} with semicolons, or "
                    "rename the column to label if it is a single class"
                )


def _from_json_lines(path: Path, text: str, label_maps: str | None) -> ImageList:
    """Rows of JSON objects."""
    rows, unread, columns = [], dict[str, None](), dict[str, None]()
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line, object_pairs_hook=_object, parse_constant=_refuse)
            rows.append(_json_row(number, content, label_maps))
        except (ValueError, RecursionError) as error:
            detail = f" ({error})" if type(error) is ValueError else ""
            forms = '{"path": ..., "label": ...} or {"path": ..., "labels": [...]}'
            if label_maps is not None:
                forms = f'{{"image": ..., "{label_maps}": ...}}'
            raise DataError(f"{path}, line {number}: expected {forms}{detail}") from None
        columns.update(dict.fromkeys(key for key in content if key in (*LABEL_NAMES, *_SEVERAL_NAMES)))
        unread.update(dict.fromkeys(key for key in content if not _is_known(key) and key != label_maps))
    notes = [f"{path}: keys that are not read: {', '.join(unread)}"] if unread else []
    return ImageList(path, rows, next(iter(columns), "label"), notes)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is given twice")
    return content


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is a missing value")


def _json_row(line: int, content: Any, label_maps: str | None) -> Row:
    """Raises ValueError, with the reason, for anything but a path and classes, or a path and that of a label map."""
    if not isinstance(content, dict):
        raise ValueError(f"found {content!r:.60}")
    paths = [key for key in content if key in PATH_NAMES and key != label_maps]
    given = [key for key in content if key in (*LABEL_NAMES, *_SEVERAL_NAMES) and content[key] is not None]
    if len(paths) != 1 or len(given) > 1:
        found = ", ".join(map(str, given if len(given) > 1 else content)) or "nothing"
        raise ValueError(f"{'one label is needed' if len(given) > 1 else 'one path is needed'}, found {found}")
    name = content[paths[0]]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{paths[0]} is {name!r:.60}")
    if label_maps is not None:
        file = content.get(label_maps)
        if file is not None and not (isinstance(file, str) and file.strip()):
            raise ValueError(f"{label_maps} is {file!r:.60}")
        return Row(line, name, None, file)
    if not given:
        return Row(line, name, None)
    key, value = given[0], content[given[0]]
    if key in _SEVERAL_NAMES:
        if not isinstance(value, list):
            raise ValueError(f"{key} is {value!r:.60}")
        return Row(line, name, tuple(dict.fromkeys(_json_class(key, item) for item in value)))
    return Row(line, name, _json_class(key, value))


def _json_class(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise ValueError(f"{key} has {value!r:.60}, which is neither a name nor a number")
    return str(value).strip()
