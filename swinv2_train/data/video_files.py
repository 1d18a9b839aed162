"""Videos in folders: files, and folders of frames.

A folder of frames is one with images, without videos, and without subfolders that contain files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.image_files import FolderScan, extension, image_extensions, subfolders, walk
from swinv2_train.data.samples import VIDEO, VIDEO_EXTENSIONS

VIDEO_FILES = (
    *VIDEO_EXTENSIONS, "3gp", "asf", "flv", "m2ts", "mpeg", "mpg", "mts", "ogv", "ts", "vob", "wmv",
)  # fmt: skip
"""Extensions of the files that are read as videos. Those that shards do not have need an encoding (`--short-side`)."""
_MAY_HOLD_VIDEOS = frozenset((
    "tar", "tgz", "gz", "bz2", "xz", "zst", "zip", "7z", "rar", "h264", "h265", "hevc", "mjpeg", "mjpg", "rm", "rmvb",
    "divx", "mxf", "f4v", "gif", "y4m", "yuv", "part",
))  # fmt: skip
_DIGITS = re.compile(r"\d+")
FRAME_FORMATS = ("jpg", "jpeg", "jpe", "jfif", "png")
"""Extensions of frames that are packed, as they are, into one video."""


@dataclass
class VideoScan(FolderScan):
    """Contents of a folder, searched to any depth; `images` are the video files and the folders of frames."""

    kind: str = VIDEO
    loose: list[str] = field(default_factory=list)
    """Images that are in no folder of frames, the first of each folder."""
    num_loose: int = 0

    @property
    def lost(self) -> bool:
        """True if the unread files may contain videos, or something could not be examined."""
        return bool(self.unread.keys() & _MAY_HOLD_VIDEOS or self.num_loose or self.not_files or self.unreadable)

    def notes(self) -> list[str]:
        """Return a line for each kind of content that is not read."""
        lines = super().notes()
        if self.num_loose:
            why = f"a folder of frames is below {self.root}, with images, and without videos or subfolders"
            lines.append(
                f"{self.root}: {self.num_loose:,} images are in no folder of frames, such as {self.loose[0]} ({why})"
            )
        return lines


def scan_videos(root: str | Path, skip: Collection[Path] = ()) -> VideoScan:
    """Find the videos in a folder, to any depth; see `scan_folder`.

    Images directly in `root` are never frames, because a set of one video is not what the folder is meant to be.
    """
    found = VideoScan(str(root))
    skipped = {os.path.realpath(path): os.path.basename(path) for path in skip}
    images: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    others: set[str] = {str(root)}
    """Folders that are not folders of frames: those with videos, and those above folders with files."""
    for path, is_file in walk(str(root), frozenset(), skipped, found):
        folder, suffix = os.path.dirname(path), extension(path)
        _add_ancestors(others, folder, str(root))
        if suffix in image_extensions() and is_file:
            counts[folder] += 1
            if not images[folder]:
                images[folder].append(path)
        elif suffix not in VIDEO_FILES:
            found.unread[suffix] += 1
        elif is_file:
            found.images.append(path)
            others.add(folder)
        else:
            found.not_files.append(path)
    for folder, first in images.items():
        if folder in others:
            found.loose += first
            found.num_loose += counts[folder]
        else:
            found.images.append(folder)
    found.images.sort()
    found.subfolders = subfolders(root, skipped)
    return found


def _add_ancestors(known: set[str], folder: str, root: str) -> None:
    """Add the folders above a folder, up to `root`."""
    while folder != root and (folder := os.path.dirname(folder)) not in known:
        known.add(folder)


def frames_of(folder: str | Path) -> list[Path]:
    """Return the frames in a folder in their order: the numbers in their names decide, `2` before `10`.

    Raises:
        BrokenSample: if it has none, or names of several kinds, so that the order is unknown.
        OSError: if it cannot be read.
    """
    with os.scandir(folder) as listing:
        names = [one.name for one in listing if not one.name.startswith(".") and extension(one.name) in _images()]
    if not names:
        raise BrokenSample("the folder has no images")
    kinds = {_DIGITS.sub("#", os.path.splitext(name)[0]): name for name in sorted(names, reverse=True)}
    if len(kinds) > 1:
        first, second = sorted(kinds.values())[:2]
        raise BrokenSample(f"its images have names of different kinds, {first} and {second}: keep one kind of frames")
    numbers = {name: [int(digits) for digits in _DIGITS.findall(os.path.splitext(name)[0])] for name in names}
    names.sort(key=lambda name: (numbers[name], name))
    for first, second in itertools.pairwise(names):
        if numbers[first] == numbers[second]:
            raise BrokenSample(f"its images {first} and {second} have the same number")
    return [Path(folder, name) for name in names]


def gaps_note(folders: Iterable[str]) -> str | None:
    """Return a line about folders of frames whose numbers have gaps; None if none has.

    The frames are packed as if they followed each other. Folders whose frames have no order are left to packing.
    """
    found = []
    for folder in folders:
        with contextlib.suppress(BrokenSample, OSError):
            gap = _first_gap(frames_of(folder))
            if gap is not None:
                found.append((folder, gap))
    if not found:
        return None
    folder, (first, second) = found[0]
    count = "1 folder of frames has" if len(found) == 1 else f"{len(found):,} folders of frames have"
    return (
        f"{count} gaps in the numbers, such as {folder} between {first.name} and {second.name}: the frames are packed "
        "as if they followed each other"
    )


def _first_gap(frames: list[Path]) -> list[Path] | None:
    """Return the frames at the first gap: a step above the smallest one, in names of which a single number changes."""
    numbers = [[int(digits) for digits in _DIGITS.findall(path.stem)] for path in frames]
    changing = [values for values in zip(*numbers, strict=True) if len(set(values)) > 1]
    if len(changing) != 1:
        return None
    steps = [after - before for before, after in itertools.pairwise(changing[0])]
    return next((frames[n : n + 2] for n, step in enumerate(steps) if step > min(steps)), None)


def _images() -> frozenset[str]:
    return frozenset(image_extensions())


def frames_version(folder: str | Path) -> str:
    """Return what changes when a folder of frames does: bytes, newest time, and number of its images."""
    size, newest, count = 0, 0, 0
    with os.scandir(folder) as listing:
        for one in listing:
            if extension(one.name) in image_extensions():
                found = one.stat()
                size, newest, count = size + found.st_size, max(newest, found.st_mtime_ns), count + 1
    return f"{size}-{newest}-{count}"
