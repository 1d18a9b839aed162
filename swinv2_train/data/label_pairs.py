"""Pairs of images and label maps: files of two folders with the same path, or with names that differ by a constant."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swinv2_train.config.paths import user_path
from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import scan_folder
from swinv2_train.data.label_affixes import affix_of
from swinv2_train.data.label_rules import LabelRules

_SHOWN = 5


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
    """Find the label map of each image in a folder: see `affix_of` for names that differ.

    Args:
        images: path -> path in the folder of the images.

    Raises:
        DataError: if the names do not say which label map belongs to which image.
    """
    root = str(folder)
    scan = scan_folder(folder)
    if not scan.images:
        raise DataError(f"--labels {folder} holds no label maps (PNG or TIFF)")
    ours = {path: os.path.splitext(relative)[0] for path, relative in images.items()}
    maps: dict[str, list[str]] = defaultdict(list)
    for path in scan.images:
        maps[os.path.splitext(os.path.relpath(path, root))[0]].append(path)
    pairs = Pairs(notes=[f"{line}" for line in scan.notes()], lost=scan.lost)
    affix = None
    if not maps.keys() & set(ours.values()):
        affix = affix_of(ours.values(), maps, f"{next(iter(ours))} and {scan.images[0]}")
        pairs.notes.append(f"paired by parts of names: {affix}")
    taken: dict[str, str] = {}
    for path, image_stem in ours.items():
        stem = image_stem if affix is None else affix.label(image_stem)
        if stem not in maps:
            expected = os.path.join(root, f"{stem}.png")
            pairs.refused.append((path, f"it has no label map (expected {expected} or .tif)"))
            continue
        if len(maps[stem]) > 1:
            first, second = sorted(maps[stem])[:2]
            raise DataError(f"{path} has two label maps, {first} and {second}: remove one of them")
        (file,) = maps[stem]
        if file in taken:
            raise DataError(
                f"{taken[file]} and {path} have the same label map {file}: remove one of the images, or rename it and "
                "add its label map"
            )
        taken[file] = path
        pairs.files[path] = file
    _report(pairs, sorted(path for files in maps.values() for path in files if path not in taken))
    return pairs


def _report(pairs: Pairs, alone: Sequence[str]) -> None:
    """Add a line for images, and one for label maps, without a partner."""
    missing = [path for path, _ in pairs.refused]
    for what, paths in (("images without a label map", missing), ("label maps without an image", alone)):
        if paths:
            more = ", ..." if paths[_SHOWN:] else ""
            pairs.notes.append(f"{what}: {len(paths):,}, {', '.join(paths[:_SHOWN])}{more}")
            pairs.lost = True
