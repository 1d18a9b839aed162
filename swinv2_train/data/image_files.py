"""Image files in folders: the suffixes that are read, and the one walker that every command uses."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swinv2_train.config import own_parts
from swinv2_train.config.image_formats import IMAGE_EXTENSIONS
from swinv2_train.data.errors import DataError

ARRAY_EXTENSIONS = ("npy", "npz")
"""Extensions of arrays of NumPy, which are read as images where there are no others."""
_MAY_HOLD_IMAGES = frozenset((
    "heic", "heif", "hif", "jxl", "jxr", "jpx", "j2k", "j2c", "jpf", "jpm", "cr2", "cr3", "crw", "nef", "nrw",
    "arw", "orf", "rw2", "raf", "dng", "raw", "srw", "pef", "svg", "psd", "psb", "exr", "hdr", "ppm", "pgm",
    "pbm", "pnm", "pam", "pfm", "tga", "ico", "cur", "pcx", "dds", "eps", "dcm", "dicom", "nii", "mha",
    "nrrd", "fits", "npy", "npz", "mat", "h5", "hdf5", "parquet", "lmdb", "rec", "tfrecord", "tar", "tgz",
    "gz", "bz2", "xz", "zst", "zip", "7z", "rar",
))  # fmt: skip
_SYSTEM_NAMES = frozenset((
    "@eadir", "__macosx", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "lost+found", "@recently-snapshot",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
))  # fmt: skip
"""Folders and files that systems and file servers create, in lower case."""


@dataclass
class FolderScan:
    """Contents of a folder, searched to any depth."""

    root: str
    images: list[str] = field(default_factory=list)
    """Paths of the image files, sorted."""
    kind: str = "image"
    """Kind of the files that are searched for."""
    subfolders: list[str] = field(default_factory=list)
    """Names of the folders directly in it."""
    unread: Counter[str] = field(default_factory=Counter)
    """Other files per suffix, in lower case; "" for files without one."""
    not_files: list[str] = field(default_factory=list)
    """Paths named like images that are not regular files, such as pipes and sockets."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(folder, reason) of folders that cannot be listed."""

    @property
    def lost(self) -> bool:
        """True if the unread files may contain images, or something could not be examined."""
        return bool(self.unread.keys() & _MAY_HOLD_IMAGES or self.not_files or self.unreadable)

    def notes(self) -> list[str]:
        """Return a line for each kind of content that is not read."""
        lines = []
        if self.unread:
            kinds = sorted(self.unread.items(), key=lambda item: (item[0] not in _MAY_HOLD_IMAGES, -item[1], item[0]))
            counted = ", ".join(
                f"{count:,} {f'.{suffix}' if suffix else 'without a suffix'}" for suffix, count in kinds
            )
            lines.append(f"{self.root}: files that are not read as {self.kind}s: {counted}")
        if self.not_files:
            count, names = len(self.not_files), f"names of {self.kind}s"
            lines.append(f"{self.root}: {count:,} {names} are not regular files, such as {self.not_files[0]}")
        lines.extend(f"{folder} cannot be read ({reason})" for folder, reason in self.unreadable)
        return lines


def image_extensions() -> tuple[str, ...]:
    """Return the extensions of the files and shard members that are read as images, those of own decoders last."""
    return (*IMAGE_EXTENSIONS, *own_parts.parts("decoders"))


def own_extensions() -> list[str]:
    """Return the extensions of own decoders, sorted."""
    return sorted(own_parts.parts("decoders"))


def extension(name: str) -> str:
    """Return the part of a file name after its last dot, in lower case; "" if there is none."""
    return os.path.splitext(name)[1][1:].lower()


def is_array(extension: str) -> bool:
    """Return whether files and members with this extension, such as npy or left.npy, are arrays of NumPy."""
    return extension.rpartition(".")[2] in ARRAY_EXTENSIONS


def scan_folder(root: str | Path, skip: Collection[Path] = ()) -> FolderScan:
    """Find the images in a folder, to any depth; if it has none, its arrays of NumPy.

    Links to files and folders are followed, except to a folder that contains the link. Hidden files and folders and
    those that systems create (`@eaDir`, `__MACOSX`, `.thumbnails`, `Thumbs.db`, ...) are ignored.

    Args:
        skip: files and folders that do not count, such as those of the output.
    """
    found, arrays = FolderScan(str(root)), []
    skipped = {os.path.realpath(path): os.path.basename(path) for path in skip}
    read = frozenset(image_extensions())
    for path, is_file in walk(str(root), frozenset(), skipped, found):
        suffix = extension(path)
        if suffix in ARRAY_EXTENSIONS and is_file:
            arrays.append(path)
        elif suffix not in read:
            found.unread[suffix] += 1
        elif is_file:
            found.images.append(path)
        else:
            found.not_files.append(path)
    if found.images or found.not_files:
        found.unread.update(map(extension, arrays))
    else:
        found.images = arrays
    found.images.sort()
    found.subfolders = subfolders(root, skipped)
    return found


def subfolders(root: str | Path, skipped: Collection[str]) -> list[str]:
    """Return the names of the folders directly in a folder, sorted.

    Args:
        skipped: real paths of those that do not count.
    """
    with contextlib.suppress(OSError), os.scandir(root) as listing:
        folders = [entry for entry in listing if _is_folder(entry) and not _ignored(entry.name)]
        return sorted(entry.name for entry in folders if os.path.realpath(entry.path) not in skipped)
    return []


def walk(
    folder: str, above: frozenset[str], skipped: Mapping[str, str], found: FolderScan
) -> Iterator[tuple[str, bool]]:
    """Yield (path, true if it is a regular file or a link to nothing) of all files below a folder.

    Args:
        above: real paths of the folders on the way here; a link to one of them would be followed forever.
        skipped: real paths of what does not count, each with its name.
    """
    place = os.path.realpath(folder)
    if place in above or place in skipped:
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        found.unreadable.append((folder, error.strerror or str(error)))
        return
    names = set(skipped.values())
    for entry in entries:
        if _ignored(entry.name):
            continue
        if _is_folder(entry):
            yield from walk(entry.path, above | {place}, skipped, found)
        elif entry.name not in names or os.path.realpath(entry.path) not in skipped:
            yield entry.path, _is_file(entry)


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example, a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry can be read as a file; a link to nothing counts, because reading it names the error."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def picture_format(path: Path) -> str:
    """Return PIL's name of the format of an image file that is to be written.

    Raises:
        DataError: if its suffix is of none that can be written.
    """
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    if kind not in Image.SAVE:
        raise DataError(f"{path}: the name must end in that of a picture format, such as .png or .jpg")
    return kind
