"""Pairs of the images of a folder and annotations that list them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swinv2_train.config.paths import user_path
from swinv2_train.data.box_lists import read_boxes
from swinv2_train.data.card_objects import Category
from swinv2_train.data.category_table import read_categories
from swinv2_train.data.coco_json import read_coco
from swinv2_train.data.errors import DataError
from swinv2_train.data.object_store import Annotations, ListedImage
from swinv2_train.data.pack_entries import Entry, Source, SourceObjects
from swinv2_train.data.voc_xml import read_voc

_SHOWN = 5
READERS: dict[str, Callable[[Path, Sequence[Category] | None], Annotations]] = {
    "coco": read_coco,
    "boxes": read_boxes,
    "voc": read_voc,
}
"""Readers of annotations, by the option of `swinv2-data pack`."""


@dataclass(frozen=True)
class ObjectsOption:
    """Annotations to pack with the images of a folder."""

    kind: str
    """Their form, a key of `READERS`."""
    place: str
    """Their file or folder."""
    class_names: Path | None = None
    """File whose categories keep their numbers, see `read_categories`."""


def with_objects(found: Source, root: Path, option: ObjectsOption) -> Source:
    """Add objects to the images of a folder; images that the annotations do not list are left out.

    Raises:
        DataError: if the annotations cannot be read, or none of their images is in the folder.
    """
    known = None if option.class_names is None else read_categories(option.class_names)
    read = READERS[option.kind](user_path(option.place), known)
    files = {_plain(os.path.relpath(entry.path, root)): entry for entry in found.entries}
    places = _matched(read, list(files))
    candidates = _candidates(files)
    if not places:
        first = read.images[0]
        several = _several(first, candidates)
        raise DataError(
            f"none of the {len(read.images):,} images of {read.source} is in {root}: it lists {first.name}, for example"
            f", and {several or f'the folder has {next(iter(files))}'}"
        )
    digests = dict(read.store.digests())
    kept = [
        replace(files[place], listed=image, version=_version(files[place], image, digests.get(image.number)))
        for place, image in places.items()
    ]
    paired = {image.number for image in places.values()}
    alone = {image.name: _several(image, candidates) for image in read.images if image.number not in paired}
    missing = [name for name, several in alone.items() if not several]
    notes = [
        f"{what}: {len(names):,}, {', '.join(names[:_SHOWN])}{', ...' if names[_SHOWN:] else ''}"
        for what, names in (
            ("images that the annotations do not list, left out", sorted(files.keys() - places.keys())),
            ("images of the annotations that are not in the folder", missing),
            ("images of the annotations of whose name there are several", [name for name in alone if alone[name]]),
            ("files of annotations that cannot be read", [path for path, _ in read.refused]),
        )
        if names
    ]
    absent = [(name, several or f"it is in the annotations, but not in {root}") for name, several in alone.items()]
    return replace(
        found,
        entries=kept,
        class_names=[category.name for category in read.categories],
        refused=(*found.refused, *absent, *read.refused),
        notes=(*found.notes, *notes),
        lost=found.lost or bool(notes),
        objects=SourceObjects(read.categories, read.store, read.cleaning),
    )


def _version(entry: Entry, image: ListedImage, digest: str | None) -> str:
    """Return the version of an image together with its annotations."""
    content = repr((image.id, image.size, digest))
    return f"{entry.version}/{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _matched(read: Annotations, files: Sequence[str]) -> dict[str, ListedImage]:
    """Return the annotated image of each file.

    Paths in the folder count first, then base names that only one file has. Files of annotations (`other_name` is set)
    are named like their images, apart from the extension, and else `other_name` counts.

    Args:
        files: paths in the folder.

    Raises:
        DataError: if two annotated images are the same file.
    """
    matched: dict[str, ListedImage] = {}
    left = list(read.images)
    if any(image.other_name is not None for image in left):
        shared = Counter(os.path.splitext(file)[0] for file in files)
        stems = {stem: file for file in files if shared[stem := os.path.splitext(file)[0]] == 1}
        left = _match(read, matched, left, [_plain(image.name) for image in left], stems)
        names = [_plain(image.other_name or "") for image in left]
    else:
        names = [_plain(image.name) for image in left]
    _match(read, matched, left, names, {file: file for file in files})
    return matched


def _match(
    read: Annotations,
    matched: dict[str, ListedImage],
    images: Sequence[ListedImage],
    names: Sequence[str],
    files: dict[str, str],
) -> list[ListedImage]:
    """Add the images whose names are among the keys of `files`, or have one of their base names; return the others."""
    rest = list(zip(images, names, strict=True))
    for table in (files, _by_base_name(files)):
        by_base = table is not files
        found, taken = [], set(matched)
        for image, name in rest:
            file = table.get(os.path.basename(name) if by_base else name)
            if file is None or (by_base and file in taken):
                found.append((image, name))
                continue
            before = matched.setdefault(file, image)
            if before is not image:
                raise DataError(
                    f"{read.source}: {before.name} (id {before.id}) and {image.name} (id {image.id}) are both the file "
                    f"{file}: keep one of them"
                )
        rest = found
    return [image for image, _ in rest]


def _candidates(files: Iterable[str]) -> dict[str, list[str]]:
    """Return the files by base name, and by base name without extension."""
    found: dict[str, list[str]] = {}
    for file in files:
        base = os.path.basename(file)
        for name in {base, os.path.splitext(base)[0]}:
            found.setdefault(name, []).append(file)
    return found


def _several(image: ListedImage, candidates: Mapping[str, Sequence[str]]) -> str | None:
    """Return why an image without a file may be any of several; None if none or one has its name."""
    by_stem = image.other_name is not None  # as for files of annotations, whose own extension is not in their name
    for name in (image.name, image.other_name):
        found = candidates.get(os.path.basename(_plain(name)), ()) if name else ()
        if len(found) > 1:
            listed = ", ".join(sorted(found)[:_SHOWN]) + (", ..." if found[_SHOWN:] else "")
            place = f"{os.path.splitext(min(found))[0]}.xml"
            how = f"place its XML file as the image is, such as {place} in its folder" if by_stem else "give its path"
            return f"{len(found)} files have this name: {listed}; {how}"
    return None


def _by_base_name(files: dict[str, str]) -> dict[str, str]:
    """Return base name -> file, of the base names that only one file has."""
    counts = Counter(map(os.path.basename, files))
    return {base: file for name, file in files.items() if counts[base := os.path.basename(name)] == 1}


def _plain(name: str) -> str:
    """Return a path with the separators of this system, and relative."""
    return os.path.normpath(name.replace("\\", "/")).lstrip("/")
