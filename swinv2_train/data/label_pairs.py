"""Pairs of images and label maps: files of two folders with the same path, apart from the extension."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swinv2_train.config.paths import user_path
from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import scan_folder
from swinv2_train.data.label_rules import LabelRules

_SHOWN = 5
_ENDING = re.compile(r"[_\-. ].*$")
"""Part of the common end of names that counts as an ending: `_mask` of `7_mask`, not `7_mask`."""


@dataclass(frozen=True)
class LabelMaps:
    """Label maps to pack with the images."""

    place: str
    """Folder of the label maps; of a list of images, its column of them; of shards, the member, such as mask.png."""
    rules: LabelRules

    def folder(self, images: Path) -> Path:
        """Return the folder. Raises DataError if it is not one, or the same as that of the images."""
        path = user_path(self.place)
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise DataError(f"--labels {self.place} {what}: name the folder of the label maps")
        if path.resolve() == images.resolve():
            raise DataError(
                f"--labels {self.place} is the folder of the images: move the label maps to a folder of their own, or "
                "pack a list (.csv) with the columns image and label_map"
            )
        return path


@dataclass
class Pairs:
    """Label map of each image, and files without a partner."""

    files: dict[str, str] = field(default_factory=dict)
    """Image -> label map."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(image, reason) of images without a label map."""
    notes: list[str] = field(default_factory=list)
    lost: bool = False
    """True if a file has no partner."""


def pair_folder(images: Mapping[str, str], folder: Path) -> Pairs:
    """Find the label map of each image in a folder.

    If no two paths agree, an ending that all images (`_sat`) or all label maps (`_mask`) share is left out.

    Args:
        images: path -> path in the folder of the images.

    Raises:
        DataError: if no image has a label map, or an image has two.
    """
    root = str(folder)
    scan = scan_folder(folder)
    if not scan.images:
        raise DataError(f"--labels {folder} holds no label maps (PNG or TIFF)")
    ours = {path: os.path.splitext(relative)[0] for path, relative in images.items()}
    theirs = {path: os.path.splitext(os.path.relpath(path, root))[0] for path in scan.images}
    endings = _endings(ours.values(), theirs.values())
    ours = {path: stem.removesuffix(endings[0]) for path, stem in ours.items()}
    maps: dict[str, list[str]] = defaultdict(list)
    for path, stem in theirs.items():
        maps[stem.removesuffix(endings[1])].append(path)
    pairs = Pairs(notes=[f"{line}" for line in scan.notes()], lost=scan.lost)
    for path, stem in ours.items():
        if len(maps.get(stem, ())) > 1:
            first, second = sorted(maps[stem])[:2]
            raise DataError(f"{path} has two label maps, {first} and {second}: remove one of them")
        if stem in maps:
            pairs.files[path] = maps[stem][0]
        else:
            expected = os.path.join(root, f"{stem}{endings[1]}.png")
            pairs.refused.append((path, f"it has no label map (expected {expected} or .tif)"))
    if not pairs.files:
        raise DataError(
            f"none of the {len(ours):,} images has a label map: {next(iter(ours))} and {scan.images[0]}, for example, "
            "have different names; pack a list (.csv) with the columns image and label_map"
        )
    if any(endings):
        shown = [f"{name} of the {kind}" for name, kind in zip(endings, ("images", "label maps"), strict=True) if name]
        pairs.notes.append(f"paired without the endings of names: {' and '.join(shown)}")
    _report(pairs, maps, set(ours.values()))
    return pairs


def _report(pairs: Pairs, maps: Mapping[str, list[str]], stems: set[str]) -> None:
    """Add a line for images, and one for label maps, without a partner."""
    alone = sorted(path for stem, paths in maps.items() if stem not in stems for path in paths)
    missing = [path for path, _ in pairs.refused]
    for what, paths in (("images without a label map", missing), ("label maps without an image", alone)):
        if paths:
            more = ", ..." if paths[_SHOWN:] else ""
            pairs.notes.append(f"{what}: {len(paths):,}, {', '.join(paths[:_SHOWN])}{more}")
            pairs.lost = True


def _endings(images: Iterable[str], maps: Iterable[str]) -> tuple[str, str]:
    """Return the endings of all images and of all label maps to leave out; empty ones if paths agree without it."""
    ours, theirs = set(images), set(maps)
    ends = _common_ending(ours), _common_ending(theirs)
    for pair in (("", ""), ("", ends[1]), (ends[0], ""), ends):
        if {stem.removesuffix(pair[0]) for stem in ours} & {stem.removesuffix(pair[1]) for stem in theirs}:
            return pair
    return "", ""


def _common_ending(stems: set[str]) -> str:
    """Return the ending that all names share, from its first separator; empty if there is none."""
    names = [os.path.basename(stem) for stem in stems]
    shortest = min(names, key=len)
    starts = (place for place in range(len(shortest)) if all(name.endswith(shortest[place:]) for name in names))
    found = _ENDING.search(shortest[next(starts, len(shortest)) :])
    return found[0] if found else ""
