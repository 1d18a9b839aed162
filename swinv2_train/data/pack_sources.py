"""Sources to pack: the images of a folder, of a list, or of existing shards, in a shuffled but fixed order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from swinv2_train.config.image_formats import FIRST_EXTENSIONS, IMAGE_EXTENSIONS
from swinv2_train.config.paths import user_path
from swinv2_train.data.card_label_maps import MEMBER
from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.class_order import in_order, is_number
from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import (
    ARRAY_EXTENSIONS,
    FolderScan,
    extension,
    image_extensions,
    is_array,
    scan_folder,
)
from swinv2_train.data.label_pairs import LabelMaps, pair_folder
from swinv2_train.data.label_rules import packed_rules
from swinv2_train.data.pack_entries import Entry, Source, SourceObjects, fraction
from swinv2_train.data.pack_lists import LIST_SUFFIXES, ImageList, Row, class_labels, located, read_list
from swinv2_train.data.pack_objects import ObjectsOption, with_objects
from swinv2_train.data.samples import LeftOut
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.sources import MANIFEST_SUFFIX
from swinv2_train.text import counted

_NOT_LISTS = {
    ".txt": "name it .csv or .tsv",
    ".json": "write one object per line into a .jsonl file",
    ".parquet": "write it as .csv or .jsonl",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as CSV UTF-8"),
    **dict.fromkeys((f".{name}" for name in (*IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS)), "it is an image; name its folder"),
}
"""Other files that users name, and what to do with them."""


def open_source(
    source: str,
    *,
    classes: bool,
    seed: int,
    class_names: Path | None = None,
    out: Path | None = None,
    image: str | None = None,
    labels: LabelMaps | None = None,
    objects: ObjectsOption | None = None,
) -> Source:
    """Find the images.

    Args:
        out: folder that the shards go to; it is not searched.
        image: member to pack of samples with several images, if the source is shards.
        labels: their label maps. Shards that the packer wrote have them with their meaning, if any.
        objects: their boxes and masks. Shards that the packer wrote have them.

    Raises:
        DataError: if there are none or the source is not understood.
    """
    path = user_path(source)
    names = read_class_names(class_names) if class_names is not None else None
    if labels is not None and classes:
        raise DataError("--classes has a class for each image, and --labels one for each pixel: use one of the two")
    if objects is not None and classes:
        what = f"--{objects.kind} for each object"
        raise DataError(f"--classes has a class for each image, and {what}: use one of the two")
    if path.suffix.lower() in LIST_SUFFIXES and not path.is_dir():
        if classes:
            raise DataError("--classes is for folders: a list brings its own labels")
        found = _from_list(path, names, labels)
    elif (scan := _scan(path, out, labels)) is not None:
        if names is not None and not classes:
            raise DataError("--class-names numbers the classes of a list, or of a folder with --classes")
        found = _from_folder(scan, classes, names)
        found = found if labels is None else _labeled(found, path, labels)
        found = found if objects is None else with_objects(found, path, objects)
    elif path.suffix.lower() in _NOT_LISTS and path.is_file():
        raise DataError(f"{source} is not a list that can be read: {_NOT_LISTS[path.suffix.lower()]}")
    else:
        if classes:
            raise DataError("--classes is for folders: shards bring their own labels")
        if names is not None:
            raise DataError("--class-names is for folders and lists: shards bring their own labels")
        found = _with_loose_images(_from_shards(source, image, labels), path)
    if objects is not None and (found.objects is None or found.shards is not None):
        raise DataError(f"--{objects.kind} is for a folder of images, and {source} is a list or shards: use a folder")
    if image is not None and found.shards is None:
        raise DataError(f"--image {image} is for shards whose samples have several images, and {source} is not a shard")
    if not found.entries:
        reasons = "".join(
            f"; {line}" for line in (*found.notes, *(f"{path}: {why}" for path, why in found.refused[:1]))
        )
        raise DataError(f"{source} holds no images ({', '.join((*image_extensions(), *ARRAY_EXTENSIONS))}){reasons}")
    ordered = sorted(found.entries, key=lambda entry: fraction(f"{seed}/{entry.key}"))
    return replace(found, entries=ordered, arrays=_has_arrays(found))


def _has_arrays(found: Source) -> bool:
    """Return whether a source consists of arrays. Raises DataError if it has arrays and images."""
    if found.shards is not None:
        return found.shards.of_arrays
    kinds = {is_array(extension(entry.path)): entry.path for entry in found.entries}
    if len(kinds) > 1:
        raise DataError(f"{found.root} names arrays ({kinds[True]}) and images ({kinds[False]}): pack them separately")
    return True in kinds


def _scan(path: Path, out: Path | None, labels: LabelMaps | None) -> FolderScan | None:
    """Search a folder of images; None if the path is not one, but a shard, a pattern or a folder of shards.

    A folder that has both is one of images, unless the packer wrote it.
    """
    if not path.is_dir():
        return None
    inside = out is not None and os.path.realpath(out) == os.path.realpath(path)  # the shards go between the images
    tars = any(path.glob("*.tar"))
    if tars and not inside and any(path.glob(f"*{MANIFEST_SUFFIX}")):
        return None
    skip = () if inside or out is None else (out,)
    scan = scan_folder(path, skip=skip if labels is None else (*skip, labels.folder(path)))
    for suffix in ("tar", "json", "jsonl") if inside else ():
        scan.unread.pop(suffix, None)
    if scan.unreadable:
        folder, reason = scan.unreadable[0]
        raise DataError(f"{folder} cannot be read ({reason}): change its permissions, or move it out of {path}")
    return None if tars and not scan.images else scan


def _with_loose_images(found: Source, path: Path) -> Source:
    """Add a note about image files next to the shards that are packed, if the source is their folder."""
    images = scan_folder(path).images if path.is_dir() else []
    if not images:
        return found
    note = (
        f"{path}: its shards are packed, and not its {len(images):,} image files, such as {images[0]}; to pack these, "
        "move the shards to another folder"
    )
    return replace(found, notes=(*found.notes, note), lost=True)


def _from_folder(scan: FolderScan, classes: bool, class_names: list[str] | None) -> Source:
    root = Path(scan.root)
    notes, lost = scan.notes(), scan.lost
    if "tar" in scan.unread and scan.images:
        notes.append(f"{root}: its images are packed; to pack shards, name them with a pattern such as '{root}/*.tar'")
    images = [(path, _relative(path, root)) for path in scan.images]
    label = dict.fromkeys((path for path, _ in images), None)
    names = None
    if classes:
        names, numbers = _folder_classes(root, [relative for _, relative in images], class_names)
        label = {path: numbers[Path(relative).parts[0]] for path, relative in images}
        empty = [name for name in scan.subfolders if name not in {Path(relative).parts[0] for _, relative in images}]
        if empty:
            lost = True
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            notes.append(f"{root}: subfolders without an image, which are not classes: {', '.join(empty[:5])}{more}")
    rows = ((path, relative, label[path]) for path, relative in images)
    return Source(str(root.resolve()), _with_keys(rows), names, notes=tuple(notes), lost=lost)


def _folder_classes(
    root: Path, images: list[str], class_names: list[str] | None
) -> tuple[list[str], dict[str | None, int]]:
    """Return the names of the classes, and the number of each."""
    found = {Path(relative).parts[0] for relative in images if len(Path(relative).parts) > 1}
    loose = sum(len(Path(relative).parts) == 1 for relative in images)
    if not found or loose:
        what = f"{loose} images lie in it directly" if loose else "it has no subfolders with images"
        raise DataError(f"{root}: --classes takes the subfolders as classes, but {what}")
    return _numbered(in_order(found), class_names, str(root))


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, root)


def _labeled(found: Source, root: Path, labels: LabelMaps) -> Source:
    """Add the label maps of a folder to the images of another."""
    pairs = pair_folder({entry.path: _relative(entry.path, root) for entry in found.entries}, labels.folder(root))
    kept = [
        replace(entry, label_map=file, version=f"{entry.version}/{_version(file)}")
        for entry in found.entries
        if (file := pairs.files.get(entry.path)) is not None
    ]
    return replace(
        found,
        entries=kept,
        class_names=list(labels.rules.names),
        refused=(*found.refused, *pairs.refused),
        notes=(*found.notes, *pairs.notes),
        lost=found.lost or pairs.lost,
        labels=labels.rules,
    )


def _from_list(path: Path, class_names: list[str] | None, labels: LabelMaps | None) -> Source:
    found = read_list(path, None if labels is None else labels.place)
    rows, refused = _present(found)
    if labels is not None:
        return _list_of_label_maps(found, rows, refused, labels)
    labels = class_labels(found, [row for row, _ in rows])
    texts = {text for label in labels for text in (label if isinstance(label, tuple) else (label,)) if text is not None}
    names, numbers = _class_numbers(texts, class_names, str(path))
    files = []
    for (row, place), label in zip(rows, labels, strict=True):
        number = tuple(map(numbers.__getitem__, label)) if isinstance(label, tuple) else numbers.get(label)
        written = row.path if place.endswith(row.path) else row.path.replace("\\", "/")
        files.append((place, written, number))
    if found.rows and not files:
        raise DataError(
            f"{path}: none of its {len(found.rows)} files can be packed ({refused[0][0]}: {refused[0][1]}); paths are "
            f"taken relative to {path.parent.resolve()}"
        )
    return Source(str(path.resolve()), _with_keys(files), names, refused=tuple(refused), notes=tuple(found.notes))


def _list_of_label_maps(
    found: ImageList, rows: list[tuple[Row, str]], refused: list[tuple[str, str]], labels: LabelMaps
) -> Source:
    """Return the images of a list that has a column of label maps."""
    files, maps = [], {}
    for row, place in rows:
        if row.label_map is None:
            reason: str | None = f"it has no label map (line {row.line} of {found.source.name})"
        else:
            maps[place] = located(found.source.parent, row.label_map)
            why = _no_file(maps[place])
            reason = None if why is None else f"its label map {maps[place]}: {why} (line {row.line})"
        if reason is not None:
            refused.append((place, reason))
        else:
            files.append((place, row.path, None))
    if not files:
        first = f" ({refused[0][0]}: {refused[0][1]})" if refused else ""
        raise DataError(f"{found.source}: none of its {len(found.rows)} images has a label map{first}")
    entries = [
        replace(entry, label_map=maps[entry.path], version=f"{entry.version}/{_version(maps[entry.path])}")
        for entry in _with_keys(files)
    ]
    return Source(
        str(found.source.resolve()),
        entries,
        list(labels.rules.names),
        refused=tuple(refused),
        notes=tuple(found.notes),
        labels=labels.rules,
    )


def _present(found: ImageList) -> tuple[list[tuple[Row, str]], list[tuple[str, str]]]:
    """Return the rows whose file exists, with its path; and (path, reason) of the others.

    Raises DataError if two rows assign different labels to one file.
    """
    rows: list[tuple[Row, str]] = []
    refused = []
    first: dict[str, Row] = {}
    for row in found.rows:
        place = located(found.source.parent, row.path)
        reason = _no_file(place)
        before = first.setdefault(os.path.abspath(place), row)
        if reason is not None:
            refused.append((place, f"{reason} (line {row.line} of {found.source.name})"))
        elif before is row:
            rows.append((row, place))
        elif before.label == row.label:
            refused.append((place, f"line {row.line} of {found.source.name} repeats line {before.line}"))
        else:
            raise DataError(
                f"{found.source}, line {row.line}, column {found.label_column}: {row.path} is {row.label!r} here and "
                f"{before.label!r} in line {before.line}; several classes of an image go into one row of a column "
                "labels: a;b"
            )
    return rows, refused


def _no_file(path: str) -> str | None:
    """Why a path is not a file; None if it is one."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        return "the file does not exist" if missing else f"the file cannot be read ({error})"
    return None if stat.S_ISREG(mode) else "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file"


def _class_numbers(
    labels: set[str], class_names: list[str] | None, where: str
) -> tuple[list[str] | None, dict[str | None, int]]:
    """Keep labels that are numbers; number names in the order of `class_names`, or else of `in_order`."""
    if class_names is None and all(map(is_number, labels)):
        return None, {label: int(label) for label in labels}
    return _numbered(in_order(labels), class_names, where)


def _numbered(found: list[str], class_names: list[str] | None, where: str) -> tuple[list[str], dict[str | None, int]]:
    """Return the names of the classes, and the number of each."""
    names = found if class_names is None else class_names
    numbers: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    unknown = [name for name in found if name not in numbers]
    if unknown:
        known = counted(len(names), "name")
        raise DataError(f"{where}: the class {unknown[0]!r} is not one of the names in --class-names ({known})")
    return names, numbers


def _from_shards(spec: str, image: str | None, labels: LabelMaps | None) -> Source:
    shards = ShardSet.open(spec, warn=False, image=image)
    names = shards.card.class_names if shards.card else None
    packed = shards.card.label_maps if shards.card else None
    facts = shards.card.objects if shards.card else None
    objects = None if facts is None else SourceObjects(facts.categories)
    if packed is not None and labels is not None:
        raise DataError(
            f"the label maps of {spec} are packed already, with {packed.ignore} for pixels without a class: omit "
            "--labels and its options"
        )
    rules, member = None, None
    if packed is not None:
        assert shards.card is not None
        rules, member = packed_rules(shards.card.label_map_names, packed.num_classes, packed.ignore), MEMBER
    elif labels is not None:
        rules, member = labels.rules, labels.place
        names = list(rules.names) if objects is None else names
    shards.label_member = member
    entries, taken, left_out = [], set(), LeftOut()
    for index in range(shards.num_samples):
        name, key = shards.name(index), _unused(shards.key(index), taken)
        shard = shards.shards[shards.locate(index)[0]]
        version = f"{shard.size}/{name}"
        entries.append(Entry(f"{shard.url}/{shards.key(index)}", key, version, index=index, label_map=member))
    for number, shard in enumerate(shards.shards):
        left_out.merge(shards.left_out(number), shard.name)
    notes = [*shards.choices(), *(f"not read: {line}" for line in left_out.lines())]
    notes += [f"{shard.url} is cut off ({shard.truncated})" for shard in shards.shards if shard.truncated]
    notes += [str(shard.empty) for shard in shards.empty]
    lost = left_out.lost or bool(shards.empty) or any(shard.truncated for shard in shards.shards)
    root = ", ".join(shard.url for shard in shards.shards)
    return Source(root, entries, names, shards, notes=tuple(notes), lost=lost, labels=rules, objects=objects)


def _with_keys(rows: Iterable[tuple[str, str, int | tuple[int, ...] | None]]) -> list[Entry]:
    """Entries for (path, relative path, label); files of the formats that every version read get their keys first."""
    entries, taken = [], set()
    for path, relative, label in sorted(rows, key=lambda row: extension(row[0]) not in FIRST_EXTENSIONS):
        version = _version(path)
        stem = os.path.splitext(relative)[0]
        key = _unused("/".join(part.replace(".", "_") for part in Path(stem).parts if part not in ("/", "..")), taken)
        entries.append(Entry(path, key, version, label))
    return entries


def _version(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return "unreadable"  # for example, a dangling link: reading it will fail
    return f"{found.st_size}-{found.st_mtime_ns}"


def _unused(key: str, taken: set[str]) -> str:
    """Return the key itself, or with a number if two files differ only in their extension."""
    candidate, number = key, 1
    while candidate in taken:
        number += 1
        candidate = f"{key}-{number}"
    taken.add(candidate)
    return candidate
