"""What there is to pack: the images of a folder, of a list, or of existing shards, in a shuffled but fixed order."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import IMAGE_EXTENSIONS
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.sources import MANIFEST_SUFFIX, parse_manifest

_LISTS = (".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image to pack."""

    path: str
    """Where it comes from: a file, or shard and key."""
    key: str
    """Its name in the new shard; its place in the order hangs on this alone."""
    version: str
    """Changes when the image does: size and time of its file."""
    label: int | tuple[int, ...] | None = None
    """Its class; a tuple where the source gives a list of classes for every image."""
    index: int | None = None
    """Sample index, where the source is a set of shards."""


@dataclass(frozen=True)
class Source:
    """All entries of a source, and how to read them."""

    root: str
    entries: list[Entry]
    class_names: list[str] | None = None
    shards: ShardSet | None = None
    missing: tuple[str, ...] = ()
    """Paths that a list names and that do not exist."""

    def read(self, entry: Entry) -> tuple[bytes, dict[str, bytes]]:
        """The image's bytes, and the text members that go with it. Raises OSError or BrokenSample."""
        if self.shards is None:
            return Path(entry.path).read_bytes(), _label_member(entry.label)
        assert entry.index is not None
        raw = self.shards.read(entry.index, texts=True)
        return raw.data, raw.texts


def _label_member(label: int | tuple[int, ...] | None) -> dict[str, bytes]:
    """The text member that holds a label: `cls`, which webdataset reads as a number, or for a list `json`."""
    if label is None:
        return {}
    if isinstance(label, tuple):
        return {"json": json.dumps({"labels": label}).encode()}
    return {"cls": str(label).encode()}


def open_source(
    source: str, *, classes: bool, seed: int, class_names: Path | None = None, image: str | None = None
) -> Source:
    """Find the images. Raises DataError where there are none or the source is not understood.

    Args:
        image: member to pack of samples with several images, if the source is shards.
    """
    path = Path(source).expanduser()
    names = read_class_names(class_names) if class_names is not None else None
    if path.suffix.lower() in _LISTS:
        if classes:
            raise DataError("--classes is for folders: a list brings its own labels")
        found = _from_list(path, names)
    elif path.is_dir() and not any(path.glob("*.tar")):
        if names is not None and not classes:
            raise DataError("--class-names numbers the classes of a list, or of a folder with --classes")
        found = _from_folder(path, classes, names)
    else:
        if classes:
            raise DataError("--classes is for folders: shards bring their own labels")
        if names is not None:
            raise DataError("--class-names is for folders and lists: shards bring their own labels")
        found = _from_shards(source, image)
    if image is not None and found.shards is None:
        raise DataError(f"--image {image} is for shards whose samples have several images, and {source} is not a shard")
    if not found.entries:
        raise DataError(f"{source} holds no images ({', '.join(IMAGE_EXTENSIONS)})")
    ordered = sorted(found.entries, key=lambda entry: fraction(f"{seed}/{entry.key}"))
    return replace(found, entries=ordered)


def read_class_names(path: Path) -> list[str]:
    """The classes in the order of their numbers, from a file with a name per line or a manifest (*.dataset.json).

    Raises DataError where there are none, or one stands there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the class names {path} cannot be read ({error})") from None
    if path.name.endswith(MANIFEST_SUFFIX):
        names = parse_manifest(text, str(path)).card.get("classes", {}).get("names")
        if not names:
            raise DataError(f"{path} knows no names of classes: its split was packed without --classes")
        return list(names)
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError(f"the class names {path} are empty: write a name per line, in the order of the numbers")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"the class names {path} have {twice[0]!r} twice")
    return names


def fraction(text: str) -> float:
    """A number in [0, 1) that looks random and hangs on the text alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:7], "big") / 2**56


def _from_folder(root: Path, classes: bool, class_names: list[str] | None) -> Source:
    images = sorted(_images_below(root))
    if not classes:
        return Source(str(root.resolve()), _with_keys((path, _relative(path, root), None) for path in images))
    names = sorted({Path(_relative(path, root)).parts[0] for path in images if Path(path).parent != root})
    loose = [path for path in images if Path(path).parent == root]
    if not names or loose:
        what = f"{len(loose)} images lie in it directly" if loose else "it has no subfolders with images"
        raise DataError(f"{root}: --classes takes the subfolders as classes, but {what}")
    names, numbers = _numbered(names, class_names, str(root))
    rows = ((path, _relative(path, root), numbers[Path(_relative(path, root)).parts[0]]) for path in images)
    return Source(str(root.resolve()), _with_keys(rows), names)


def _images_below(root: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})")

    visited = set()  # links are followed, but not in circles
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        place = os.path.realpath(folder)
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not name.startswith("."):
                yield os.path.join(folder, name)


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, root)


def _from_list(path: Path, class_names: list[str] | None) -> Source:
    try:
        rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    labels = [label for _, label in rows]
    for kind, what in ((tuple, "list of labels"), (str, "label")):
        count = sum(isinstance(label, kind) for label in labels)
        if 0 < count < len(rows):
            raise DataError(f"{path}: {len(rows) - count} of {len(rows)} lines have no {what}")
    found = {name for label in labels for name in (label if isinstance(label, tuple) else (label,)) if name is not None}
    names, numbers = _class_numbers(found, class_names, str(path))
    files = []
    for name, label in rows:
        number = tuple(map(numbers.__getitem__, label)) if isinstance(label, tuple) else numbers.get(label)
        files.append((str(path.parent / name), name, number))
    present = [row for row in files if os.path.isfile(row[0])]
    missing = tuple(row[0] for row in files if not os.path.isfile(row[0]))
    return Source(str(path.resolve()), _with_keys(present), names, missing=missing)


_Label = str | tuple[str, ...] | None


def _csv_rows(path: Path) -> Iterator[tuple[str, _Label]]:
    """Rows of path[,label], with or without the header line `path,label`.

    With the header `path,labels` the second column is a list, its parts separated by semicolons.
    """
    listed = False
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            if number == 1 and row[0].strip().lower() == "path":
                listed = len(row) == 2 and row[1].strip().lower() == "labels"
                continue
            if len(row) > 2 or not row[0].strip():
                raise DataError(f"{path}, line {number}: expected path or path,label, found {','.join(row)!r}")
            text = row[1].strip() if len(row) == 2 else ""
            if listed:
                yield row[0].strip(), tuple(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))
            else:
                yield row[0].strip(), text or None


def _jsonl_rows(path: Path) -> Iterator[tuple[str, _Label]]:
    """Lines of {"path": ..., "label": ...} or {"path": ..., "labels": [...]}."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                label, labels = row.get("label"), row.get("labels")
                if labels is not None and (not isinstance(labels, list) or label is not None):
                    raise ValueError
                several = tuple(dict.fromkeys(map(str, labels))) if labels is not None else None
                yield str(row["path"]), several if several is not None else None if label is None else str(label)
            except (ValueError, KeyError, AttributeError):
                raise DataError(
                    f'{path}, line {number}: expected {{"path": ..., "label": ...}} or {{"path": ..., "labels": [...]}}'
                ) from None


def _class_numbers(
    labels: set[str], class_names: list[str] | None, where: str
) -> tuple[list[str] | None, dict[str | None, int]]:
    """Whole numbers are kept as they are; names are numbered in alphabetical order, or in that of `class_names`."""
    if class_names is None and all(label.isdecimal() for label in labels):
        return None, {label: int(label) for label in labels}
    return _numbered(sorted(labels), class_names, where)


def _numbered(found: list[str], class_names: list[str] | None, where: str) -> tuple[list[str], dict[str | None, int]]:
    """The names of the classes, and the number of each."""
    names = found if class_names is None else class_names
    numbers: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    unknown = [name for name in found if name not in numbers]
    if unknown:
        raise DataError(f"{where}: the class {unknown[0]!r} is not among the {len(names)} names of --class-names")
    return names, numbers


def _from_shards(spec: str, image: str | None) -> Source:
    shards = ShardSet.open(spec, image=image)
    names = shards.card.class_names if shards.card else None
    entries, taken = [], set()
    for index in range(shards.num_samples):
        name, key = shards.name(index), _unused(shards.key(index), taken)
        shard = shards.shards[shards.locate(index)[0]]
        entries.append(Entry(f"{shard.url}/{shards.key(index)}", key, f"{shard.size}/{name}", index=index))
    return Source(", ".join(shard.url for shard in shards.shards), entries, names, shards)


def _with_keys(rows: Iterable[tuple[str, str, int | tuple[int, ...] | None]]) -> list[Entry]:
    """Entries for (path, relative path, label)."""
    entries, taken = [], set()
    for path, relative, label in rows:
        try:
            stat = os.stat(path)
            version = f"{stat.st_size}-{stat.st_mtime_ns}"
        except OSError:
            version = "unreadable"  # a dangling link, say: reading it will tell
        stem = os.path.splitext(relative)[0]
        key = _unused("/".join(part.replace(".", "_") for part in Path(stem).parts if part not in ("/", "..")), taken)
        entries.append(Entry(path, key, version, label))
    return entries


def _unused(key: str, taken: set[str]) -> str:
    """The key itself, or with a number where two files differ in nothing but their extension."""
    candidate, number = key, 1
    while candidate in taken:
        number += 1
        candidate = f"{key}-{number}"
    taken.add(candidate)
    return candidate
