"""Keys, versions, and class numbers of the images and videos of a source."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from swinv2_train.config.image_formats import FIRST_EXTENSIONS
from swinv2_train.data.class_order import in_order, is_number
from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import extension
from swinv2_train.data.pack_entries import Entry
from swinv2_train.data.video_files import frames_version
from swinv2_train.text import counted


def class_numbers(
    labels: set[str], class_names: list[str] | None, where: str
) -> tuple[list[str] | None, dict[str | None, int]]:
    """Keep labels that are numbers; number names in the order of `class_names`, or else of `in_order`."""
    if class_names is None and all(map(is_number, labels)):
        return None, {label: int(label) for label in labels}
    return numbered(in_order(labels), class_names, where)


def numbered(found: list[str], class_names: list[str] | None, where: str) -> tuple[list[str], dict[str | None, int]]:
    """Return the names of the classes, and the number of each."""
    names = found if class_names is None else class_names
    numbers: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    unknown = [name for name in found if name not in numbers]
    if unknown:
        known = counted(len(names), "name")
        raise DataError(f"{where}: the class {unknown[0]!r} is not one of the names in --class-names ({known})")
    return names, numbers


def with_keys(rows: Iterable[tuple[str, str, int | tuple[int, ...] | None]]) -> list[Entry]:
    """Entries for (path, relative path, label); files of the formats that every version read get their keys first."""
    entries, taken = [], set()
    for path, relative, label in sorted(rows, key=lambda row: extension(row[0]) not in FIRST_EXTENSIONS):
        version, frames = _state(path)
        stem = relative if frames else os.path.splitext(relative)[0]
        key = unused("/".join(part.replace(".", "_") for part in Path(stem).parts if part not in ("/", "..")), taken)
        entries.append(Entry(path, key, version, label, frames=frames))
    return entries


def version(path: str) -> str:
    return _state(path)[0]


def _state(path: str) -> tuple[str, bool]:
    """Return what changes when a file or a folder of frames does, and whether it is a folder."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            return frames_version(path), True
    except OSError:
        return "unreadable", False  # for example, a dangling link: reading it will fail
    return f"{found.st_size}-{found.st_mtime_ns}", False


def unused(key: str, taken: set[str]) -> str:
    """Return the key itself, or with a number if two files differ only in their extension."""
    candidate, number = key, 1
    while candidate in taken:
        number += 1
        candidate = f"{key}-{number}"
    taken.add(candidate)
    return candidate
