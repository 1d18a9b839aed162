"""Sources to pack: the images of a folder, of a list, or of existing shards, in a shuffled but fixed order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from swinv2_train.config.image_formats import IMAGE_EXTENSIONS
from swinv2_train.config.paths import user_path
from swinv2_train.data.card_label_maps import MEMBER
from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.class_order import in_order
from swinv2_train.data.errors import DataError, VideosFound
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
from swinv2_train.data.pack_keys import class_numbers, numbered, unused, version, with_keys
from swinv2_train.data.pack_lists import LIST_SUFFIXES, ImageList, Row, class_labels, located, read_list
from swinv2_train.data.pack_objects import ObjectsOption, with_objects
from swinv2_train.data.samples import IMAGE, LeftOut
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.sources import MANIFEST_SUFFIX
from swinv2_train.data.video_files import VIDEO_FILES, scan_videos
from swinv2_train.text import counted

_NOT_LISTS = {
    ".txt": "name it .csv or .tsv",
    ".json": "write one object per line into a .jsonl file",
    ".parquet": "write it as .csv or .jsonl",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as CSV UTF-8"),
    **dict.fromkeys((f".{name}" for name in (*IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS)), "it is an image; name its folder"),
    **dict.fromkeys((f".{name}" for name in VIDEO_FILES), "it is a video; name its folder, and add --video"),
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
        found = _list_of_images(path, names, labels)
    elif (scan := _scan(path, out, labels)) is not None:
        if names is not None and not classes:
            raise DataError("--class-names numbers the classes of a list, or of a folder with --classes")
        found = from_folder(scan, classes and bool(scan.images), names)
        if found.entries:  # else the errors below name videos, or the types of images
            found = found if labels is None else _labeled(found, path, labels)
            found = found if objects is None else with_objects(found, path, objects)
    else:
        check_listable(source, path)
        if classes:
            raise DataError("--classes is for folders: shards bring their own labels")
        if names is not None:
            raise DataError("--class-names is for folders and lists: shards bring their own labels")
        found = _with_loose_images(from_shards(source, image, labels), path)
    if objects is not None and found.entries and (found.objects is None or found.shards is not None):
        raise DataError(f"--{objects.kind} is for a folder of images, and {source} is a list or shards: use a folder")
    if image is not None and found.shards is None:
        raise DataError(f"--image {image} is for shards whose samples have several images, and {source} is not a shard")
    _name_videos(found, path, out)
    if not found.entries:
        reasons = "".join(
            f"; {line}" for line in (*found.notes, *(f"{path}: {why}" for path, why in found.refused[:1]))
        )
        raise DataError(f"{source} holds no images ({', '.join((*image_extensions(), *ARRAY_EXTENSIONS))}){reasons}")
    given = annotation_options(path, classes=classes, labels=labels, objects=objects)
    return replace(found, entries=in_fixed_order(found.entries, seed), arrays=_has_arrays(found), annotated_by=given)


def annotation_options(
    path: Path, *, classes: bool, labels: LabelMaps | None = None, objects: ObjectsOption | None = None
) -> str:
    """Return the options that name the annotations of a source, with absolute paths; empty without any.

    Args:
        path: the source.
    """
    given = ["--classes"] if classes else []
    if labels is not None:
        given.append(f"--labels {user_path(labels.place).resolve() if path.is_dir() else labels.place}")
    if objects is not None:
        given.append(f"--{objects.kind} {user_path(objects.place).resolve()}")
    return " ".join(given)


def in_fixed_order(entries: Iterable[Entry], seed: int) -> list[Entry]:
    """Return entries in an order that looks random and depends only on their keys and the seed."""
    return sorted(entries, key=lambda entry: fraction(f"{seed}/{entry.key}"))


def check_listable(source: str, path: Path) -> None:
    """Raise DataError for a file that may be meant as a list or a folder, and is neither."""
    if path.suffix.lower() in _NOT_LISTS and path.is_file():
        raise DataError(f"{source} is not a list that can be read: {_NOT_LISTS[path.suffix.lower()]}")


def _name_videos(found: Source, path: Path, out: Path | None) -> None:
    """Raise VideosFound if a folder or list has only videos."""
    if path.is_dir() and not found.entries:
        videos = scan_videos(path, () if out is None else (out,)).images
    else:
        listed = found.entries if found.shards is None else ()
        videos = [entry.path for entry in listed if extension(entry.path) in VIDEO_FILES]
        videos = videos if len(videos) == len(found.entries) else []
    if videos:
        count = counted(len(videos), "video", ",")
        raise VideosFound(f"{path} has {count} and no images, such as {videos[0]}: add --video to pack videos")


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
    inside, skip = only_shards(path, out)
    if inside is None:
        return None
    scan = scan_folder(path, skip=skip if labels is None else (*skip, labels.folder(path)))
    refuse_unreadable(scan, path, inside=inside)
    return None if any(path.glob("*.tar")) and not scan.images else scan


def only_shards(path: Path, out: Path | None) -> tuple[bool | None, tuple[Path, ...]]:
    """Return whether the shards go into a folder that is packed, and the folders in it that do not count.

    Args:
        out: folder that the shards go to.

    Returns:
        None instead of a bool if the folder has the shards of an earlier packing, so that these are the source.
    """
    inside = out is not None and os.path.realpath(out) == os.path.realpath(path)  # the shards go between the files
    if not inside and any(path.glob("*.tar")) and any(path.glob(f"*{MANIFEST_SUFFIX}")):
        return None, ()
    return inside, () if inside or out is None else (out,)


def refuse_unreadable(scan: FolderScan, path: Path, *, inside: bool) -> None:
    """Raise DataError if a part of a folder cannot be searched.

    Args:
        inside: the shards go into it; their files are then forgotten.
    """
    for suffix in ("tar", "json", "jsonl") if inside else ():
        scan.unread.pop(suffix, None)
    if scan.unreadable:
        folder, reason = scan.unreadable[0]
        raise DataError(f"{folder} cannot be read ({reason}): change its permissions, or move it out of {path}")


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


def from_folder(scan: FolderScan, classes: bool, class_names: list[str] | None) -> Source:
    """Return the images (or videos) of a folder.

    Args:
        classes: the subfolders are their classes.
        class_names: order of the classes.
    """
    root, what = Path(scan.root), f"{scan.kind}s"
    notes, lost = scan.notes(), scan.lost
    if "tar" in scan.unread and scan.images:
        notes.append(f"{root}: its {what} are packed; to pack shards, name them with a pattern such as '{root}/*.tar'")
    images = [(path, _relative(path, root)) for path in scan.images]
    label = dict.fromkeys((path for path, _ in images), None)
    names = None
    if classes:
        names, numbers = _folder_classes(scan, [relative for _, relative in images], class_names)
        label = {path: numbers[Path(relative).parts[0]] for path, relative in images}
        empty = [name for name in scan.subfolders if name not in {Path(relative).parts[0] for _, relative in images}]
        if empty:
            lost = True
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            listed = f"{', '.join(empty[:5])}{more}"
            without = "an image" if scan.kind == IMAGE else f"a {scan.kind}"
            notes.append(f"{root}: subfolders without {without}, which are not classes: {listed}")
    rows = ((path, relative, label[path]) for path, relative in images)
    return Source(str(root.resolve()), with_keys(rows), names, notes=tuple(notes), lost=lost)


def _folder_classes(
    scan: FolderScan, images: list[str], class_names: list[str] | None
) -> tuple[list[str], dict[str | None, int]]:
    """Return the names of the classes, and the number of each."""
    found = {Path(relative).parts[0] for relative in images if len(Path(relative).parts) > 1}
    loose = sum(len(Path(relative).parts) == 1 for relative in images)
    if not found or loose:
        what = f"{loose} {scan.kind}s lie in it directly" if loose else f"it has no subfolders with {scan.kind}s"
        raise DataError(f"{scan.root}: --classes takes the subfolders as classes, but {what}")
    return numbered(in_order(found), class_names, scan.root)


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, root)


def _labeled(found: Source, root: Path, labels: LabelMaps) -> Source:
    """Add the label maps of a folder to the images of another."""
    pairs = pair_folder({entry.path: _relative(entry.path, root) for entry in found.entries}, labels.folder(root))
    kept = [
        replace(entry, label_map=file, version=f"{entry.version}/{version(file)}")
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


def _list_of_images(path: Path, class_names: list[str] | None, labels: LabelMaps | None) -> Source:
    found = read_list(path, None if labels is None else labels.place)
    if labels is None:
        return from_list(found, class_names)
    return _list_of_label_maps(found, *_present(found), labels)


def from_list(found: ImageList, class_names: list[str] | None, *, folders: bool = False) -> Source:
    """Return the images (or videos) of a list, with their classes.

    Args:
        class_names: order of the classes.
        folders: accept rows that are a folder, which is one of frames.
    """
    path = found.source
    rows, refused = _present(found, folders=folders)
    labels = class_labels(found, [row for row, _ in rows])
    texts = {text for label in labels for text in (label if isinstance(label, tuple) else (label,)) if text is not None}
    names, numbers = class_numbers(texts, class_names, str(path))
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
    return Source(str(path.resolve()), with_keys(files), names, refused=tuple(refused), notes=tuple(found.notes))


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
    if found.rows and not files:
        first = f" ({refused[0][0]}: {refused[0][1]})" if refused else ""
        raise DataError(f"{found.source}: none of its {len(found.rows)} images has a label map{first}")
    entries = [
        replace(entry, label_map=maps[entry.path], version=f"{entry.version}/{version(maps[entry.path])}")
        for entry in with_keys(files)
    ]
    return Source(
        str(found.source.resolve()),
        entries,
        list(labels.rules.names),
        refused=tuple(refused),
        notes=tuple(found.notes),
        labels=labels.rules,
    )


def _present(found: ImageList, *, folders: bool = False) -> tuple[list[tuple[Row, str]], list[tuple[str, str]]]:
    """Return the rows whose file exists, with its path; and (path, reason) of the others.

    Raises DataError if two rows assign different labels to one file.
    """
    rows: list[tuple[Row, str]] = []
    refused = []
    first: dict[str, Row] = {}
    for row in found.rows:
        place = located(found.source.parent, row.path)
        reason = None if folders and os.path.isdir(place) else _no_file(place)
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
                f"{before.label!r} in line {before.line}; several classes of one go into one row of a column labels: "
                "a;b"
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


def from_shards(spec: str, image: str | None = None, labels: LabelMaps | None = None, main: str = IMAGE) -> Source:
    """Return the samples of shards.

    Args:
        image, labels: as for `open_source`.
        main: kind of the main member of the samples.
    """
    shards = ShardSet.open(spec, warn=False, image=image, main=main)
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
        name, key = shards.name(index), unused(shards.key(index), taken)
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
    found = Source(root, entries, names, shards, notes=tuple(notes), lost=lost, main=main)
    return replace(found, labels=rules, objects=objects)
