"""Constant parts by which the names of label maps differ from those of their images, such as `_mask`.

A wrong pair is worse than an error. So a constant counts only if it gives nearly every image a label map, if no other
one does as well, and if it does not cut a number or a word in two: `img_1` never belongs to `img_11`.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from swinv2_train.data.errors import DataError

_RUN = re.compile(r"\d+|[^\W\d_]+|[\W_]")
"""Numbers, words, and single separators, of which a name consists."""
_SEPARATOR = re.compile(r"[\W_]+")
_NEARLY, _FEW = 0.9, 0.1
"""Fractions of the images: the least that a constant gives a label map, and the most that another one may. If the first
one gives all images a label map, another one may for `_NEARLY`."""
_PROBES = 64
"""Images by which most of the constants are found to be wrong."""
_EXAMPLES = 8
"""Images whose label maps are searched for: some of them may have none."""
_SHOWN = 3
_Item = TypeVar("_Item")
_FIX = "pack a list (.csv) with the columns image and label_map"


@dataclass(frozen=True)
class Affix:
    """Parts of all names of images, and what all names of label maps have instead."""

    start: tuple[str, str]
    """Beginning of the names of images, and of label maps."""
    end: tuple[str, str]

    def label(self, image: str) -> str:
        """Return the path of the label map of an image; both without extension."""
        folder, name = os.path.split(image)
        core = name[len(self.start[0]) : len(name) - len(self.end[0])]
        return os.path.join(folder, f"{self.start[1]}{core}{self.end[1]}")

    def __str__(self) -> str:
        parts = []
        for place, (image, label) in (("beginning", self.start), ("end", self.end)):
            if image == label:
                continue
            removed, added = f"{image} at the {place} of images", f"{label} at the {place} of label maps"
            parts.append(f"{label} instead of {removed}" if image and label else added if label else removed)
        return " and ".join(parts)


def affix_of(images: Iterable[str], maps: Collection[str], example: str) -> Affix:
    """Return the only constant difference that gives nearly every image another label map.

    Args:
        images, maps: paths in their folders, without extensions.
        example: an image and a label map, for the message.

    Raises:
        DataError: if there is none, or more than one.
    """
    ours = sorted(set(images))
    ranked = _ranked(ours, maps)
    affix, pairs = ranked[0] if ranked else (None, {})
    others = ranked[1][1] if ranked[1:] else {}
    if affix is not None and len(pairs) >= _NEARLY * len(ours):
        if len(others) <= (_NEARLY if len(pairs) == len(ours) else _FEW) * len(ours):
            return affix
        both = sorted(pairs.keys() & others.keys())
        raise DataError(
            f"{len(both):,} of {len(ours):,} images can belong to two label maps, such as {both[0]} to "
            f"{pairs[both[0]]} and to {others[both[0]]}: move one kind of label maps to another folder, or {_FIX}"
        )
    unknown = "the names do not show which label map belongs to which image"
    if affix is not None and 2 * len(pairs) >= len(ours):
        alone = [image for image in ours if image not in pairs]
        more = ", ..." if alone[_SHOWN:] else ""
        raise DataError(
            f"{unknown}: with {affix}, {len(alone):,} of {len(ours):,} images have none ({', '.join(alone[:_SHOWN])}"
            f"{more}); add their label maps, remove these images, or {_FIX}"
        )
    raise DataError(
        f"{unknown}: they differ ({example}, for example), and no single beginning or ending such as _mask gives most "
        f"images a label map; rename them, or {_FIX}"
    )


def _ranked(images: list[str], maps: Collection[str]) -> list[tuple[Affix, dict[str, str]]]:
    """Return differences with the label maps that they give images, the one for most images first."""
    probes = _some(images, _PROBES)
    found: list[tuple[Affix, dict[str, str]]] = []
    for affix in dict.fromkeys(_candidates(images, maps)):
        if sum(affix.label(image) in maps for image in probes) <= _FEW / 2 * len(probes):
            continue
        pairs = {image: label for image in images if (label := affix.label(image)) in maps}
        if all(pairs != known for _, known in found):
            found.append((affix, pairs))
    return sorted(found, key=lambda one: -len(one[1]))


def _candidates(images: list[str], maps: Collection[str]) -> Iterator[Affix]:
    """Yield the differences between some images and each label map in a folder of the same path."""
    names = [_RUN.findall(os.path.basename(image)) for image in images]
    single = all(name == names[0] for name in names)
    # Of a single name nothing is known to be constant, so its label map has to contain it, or the reverse.
    start, end = (0, 0) if single else _common(names)
    varying = [number for number, name in enumerate(names) if len(name) > start + end]
    labels = [(os.path.dirname(path), _RUN.findall(os.path.basename(path))) for path in sorted(maps)]
    for number in _some(varying, _EXAMPLES):
        folder, runs = os.path.dirname(images[number]), names[number]
        for label in (label for place, label in labels if place == folder):
            yield from _differences(runs, label, (start, end), single=single)


def _some(items: list[_Item], count: int) -> list[_Item]:
    """Return some items, always the same: not every n-th, which may all be those without a label map."""
    return random.Random(0).sample(items, min(count, len(items)))


def _differences(runs: list[str], label: list[str], common: tuple[int, int], *, single: bool) -> Iterator[Affix]:
    """Yield the differences by which a label map can belong to an image.

    Args:
        runs, label: parts of their names.
        common: numbers of runs at the beginning and at the end that all images share.
        single: there is one name of an image only.
    """
    if single and len(label) < len(runs):
        pairs = (((runs[:at], []), (runs[at + len(label) :], [])) for at in _places(label, runs))
    else:
        start, end = common
        core = runs[start : len(runs) - end]
        own = runs[:start], runs[len(runs) - end :]
        pairs = (((own[0], label[:at]), (own[1], label[at + len(core) :])) for at in _places(core, label))
    for before, after in pairs:
        if _is_plain(before, after):
            yield Affix(("".join(before[0]), "".join(before[1])), ("".join(after[0]), "".join(after[1])))


def _common(names: list[list[str]]) -> tuple[int, int]:
    """Return the numbers of runs that all names share at the beginning, and at the end of the rest."""
    least = min(map(len, names))
    start = next((at for at in range(least) if len({name[at] for name in names}) > 1), least)
    least -= start
    end = next((at for at in range(least) if len({name[-1 - at] for name in names}) > 1), least)
    return start, end


def _places(part: list[str], runs: list[str]) -> Iterator[int]:
    """Yield where the runs of a part are in others."""
    for at in range(len(runs) - len(part) + 1):
        if runs[at : at + len(part)] == part:
            yield at


def _is_plain(before: tuple[list[str], list[str]], after: tuple[list[str], list[str]]) -> bool:
    """Return whether a difference adds or removes something, or replaces no number: 1_2 is not the label map of 1_3."""
    removed, added = [], []
    for (image, label), step in ((before, -1), (after, 1)):
        # Parts next to the varying one that are equal in both make no difference.
        inner, outer = image[::step], label[::step]
        least = min(len(inner), len(outer))
        same = next((at for at in range(least) if inner[at] != outer[at]), least)
        removed += _parts(inner[same:][::step])
        added += _parts(outer[same:][::step])
    return not (removed and added) or not any(part.isdecimal() for part in removed + added)


def _parts(runs: list[str]) -> list[str]:
    """Return the texts between separators."""
    return [part for part in _SEPARATOR.split("".join(runs)) if part]
