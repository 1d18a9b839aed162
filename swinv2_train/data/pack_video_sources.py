"""Sources of videos to pack: files and folders of frames in a folder or a list, or existing shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from swinv2_train.config.paths import user_path
from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.errors import DataError
from swinv2_train.data.pack_entries import Source
from swinv2_train.data.pack_lists import LIST_SUFFIXES, read_list
from swinv2_train.data.pack_sources import (
    annotation_options,
    check_listable,
    from_folder,
    from_list,
    from_shards,
    in_fixed_order,
    only_shards,
    refuse_unreadable,
)
from swinv2_train.data.pyav import load_av
from swinv2_train.data.samples import VIDEO
from swinv2_train.data.video_files import VIDEO_FILES, VideoScan, gaps_note, scan_videos


def open_videos(
    source: str, *, classes: bool = False, seed: int = 0, class_names: Path | None = None, out: Path | None = None
) -> Source:
    """Find the videos; for the arguments see `open_source`.

    Raises:
        DataError: if there are none, the source is not understood, or videos cannot be decoded.
    """
    load_av()
    path = user_path(source)
    names = read_class_names(class_names) if class_names is not None else None
    if path.suffix.lower() in LIST_SUFFIXES and not path.is_dir():
        if classes:
            raise DataError("--classes is for folders: a list brings its own labels")
        found = from_list(read_list(path), names, folders=True)
    elif (scan := _scan(path, out)) is not None:
        if names is not None and not classes:
            raise DataError("--class-names numbers the classes of a list, or of a folder with --classes")
        found = from_folder(scan, classes, names)
    else:
        check_listable(source, path)
        if classes or names is not None:
            option = "--classes" if classes else "--class-names"
            raise DataError(f"{option} is for folders and lists: shards bring their own labels")
        found = from_shards(source, main=VIDEO)
    if not found.entries:
        reasons = "".join(f"; {line}" for line in (*found.notes, *(f"{at}: {why}" for at, why in found.refused[:1])))
        raise DataError(f"{source} has no videos ({', '.join(VIDEO_FILES)}) and no folders of frames{reasons}")
    given = annotation_options(path, classes=classes)
    gaps = gaps_note(sorted(entry.path for entry in found.entries if entry.frames))
    notes = found.notes if gaps is None else (*found.notes, gaps)
    entries = in_fixed_order(found.entries, seed)
    return replace(found, entries=entries, notes=notes, main=VIDEO, annotated_by=given)


def _scan(path: Path, out: Path | None) -> VideoScan | None:
    """Search a folder of videos; None if the path is not one, but a shard, a pattern, or a folder of shards."""
    if not path.is_dir():
        return None
    inside, skip = only_shards(path, out)
    if inside is None:
        return None
    scan = scan_videos(path, skip)
    refuse_unreadable(scan, path, inside=inside)
    return None if any(path.glob("*.tar")) and not scan.images else scan
