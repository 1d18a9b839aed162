"""Held-out share of the images of a source: a fixed function of their names, contents, and classes.

Rule 2, the present one:

- Exact copies of an image are on one side.
- Without classes, an image is held out if the hash of its name is below the share.
- With classes, every class holds out its share of its images, rounded, in the order of these hashes. A class whose
  share is less than half an image holds out one image with that probability.
- Every class keeps at least one image for training.

Adding images moves at most the images at the edge of a class from one side to the other. Rule 1, of earlier versions,
applies the hash to every image alone. Shards that were split by it are continued by it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.labels import known_labels
from swinv2_train.data.pack_entries import Entry, Source, fraction
from swinv2_train.data.samples import TEXT_EXTENSIONS

RULE = 2
_READERS = 8
_PIECE = 4096
Label = int | tuple[int, ...] | None


@dataclass(frozen=True)
class SplitRule:
    """Division of the images between two splits; recorded with the shards."""

    share: float
    """Held-out share; 0: there is one split."""
    seed: int
    rule: int = RULE

    def to_json(self) -> dict[str, float]:
        return {"share": self.share, "seed": self.seed, "rule": self.rule}


@dataclass
class Division:
    """Entries of both sides, and what to report about exact copies."""

    train: list[Entry]
    held_out: list[Entry]
    notes: list[str] = field(default_factory=list)
    leaked: bool = False
    """True if copies of one image are on both sides."""


def divide(source: Source, rule: SplitRule, progress: Callable[[str, int, int], None]) -> Division:
    """Divide the entries of a source.

    Args:
        progress: called with "copies" and the images compared and their number.
    """
    entries = source.entries
    groups = _copies(source, lambda done, total: progress("copies", done, total))
    labels = _labels(source)
    hashes = [fraction(f"split/{rule.seed}/{entry.key}") for entry in entries]
    if rule.rule == 1:
        chosen = {number for number, value in enumerate(hashes) if value < rule.share}
    else:
        grouped = {number for group in groups for number in group}
        units = [*groups, *([number] for number in range(len(entries)) if number not in grouped)]
        units.sort(key=lambda unit: min(hashes[number] for number in unit))
        chosen = _chosen(units, hashes, labels, rule, source.class_names)
    division = Division(
        [entry for number, entry in enumerate(entries) if number not in chosen],
        [entry for number, entry in enumerate(entries) if number in chosen],
    )
    _report(division, source, groups, labels, chosen)
    return division


def _chosen(
    units: Sequence[Sequence[int]],
    hashes: Sequence[float],
    labels: Sequence[Label],
    rule: SplitRule,
    names: Sequence[str] | None,
) -> set[int]:
    """Return the images to hold out, from units that stay together, sorted by their hash."""
    chosen: set[int] = set()
    by_class: dict[int, list[Sequence[int]]] = defaultdict(list)
    for unit in units:
        label = labels[min(unit, key=lambda number: hashes[number])]
        if isinstance(label, int):
            by_class[label].append(unit)
        elif min(hashes[number] for number in unit) < rule.share:
            chosen.update(unit)
    for label, members in by_class.items():
        name = names[label] if names and label < len(names) else label
        left = _quota(sum(map(len, members)), rule, f"split/{rule.seed}/class/{name}")
        for unit in members:
            if len(unit) <= left:
                chosen.update(unit)
                left -= len(unit)
    return _with_training_images(units, labels, chosen)


def _quota(count: int, rule: SplitRule, name: str) -> int:
    """Return the number of images of a class that are held out, out of `count`."""
    wanted = rule.share * count
    rounded = int(wanted + 0.5) if wanted >= 0.5 else int(fraction(name) < wanted)
    return min(rounded, count - 1)


def _with_training_images(units: Sequence[Sequence[int]], labels: Sequence[Label], chosen: set[int]) -> set[int]:
    """Give every class a training image that would have none: the last unit by hash that is held out."""
    trained = {label for number, label in _pairs(labels) if number not in chosen}
    for unit in reversed(units):
        classes = {label for number in unit for label in _classes(labels[number])}
        if unit[0] in chosen and classes - trained:
            chosen -= set(unit)
            trained |= classes
    return chosen


def _pairs(labels: Sequence[Label]) -> Iterable[tuple[int, int]]:
    return ((number, label) for number, several in enumerate(labels) for label in _classes(several))


def _classes(label: Label) -> tuple[int, ...]:
    return label if isinstance(label, tuple) else () if label is None else (label,)


def _labels(source: Source) -> list[Label]:
    """Return the label of every entry; those of shards are read."""
    labels: list[Label] = [entry.label for entry in source.entries]
    if source.shards is None:
        return labels
    for number in _in_order_of_shards(source):
        index = source.entries[number].index
        assert index is not None
        try:
            found = known_labels(source.shards.read(index, TEXT_EXTENSIONS))[0]
        except BrokenSample:
            continue
        labels[number] = found[0] if found is not None and len(found) == 1 else found
    return labels


def _in_order_of_shards(source: Source) -> list[int]:
    return sorted(range(len(source.entries)), key=lambda number: source.entries[number].index or 0)


def _copies(source: Source, progress: Callable[[int, int], None]) -> list[list[int]]:
    """Groups of entries with the same bytes.

    Only files whose size occurs twice are read: three pieces of them first, and all of those with equal pieces.
    """
    groups = _alike(range(len(source.entries)), lambda number: _size(source, source.entries[number]))
    total = sum(map(len, groups))
    done = 0
    for digest in (_pieces, _whole):
        numbers = [number for group in groups for number in group]
        found: dict[int, bytes | None] = {}
        for number, value in zip(numbers, _read_all(source, numbers, digest), strict=True):
            found[number] = value
            if digest is _pieces:
                done += 1
                progress(done, total)
        groups = [kept for group in groups for kept in _alike(group, found.__getitem__)]
    return [sorted(group) for group in groups]


def _alike(numbers: Iterable[int], key: Callable[[int], object]) -> list[list[int]]:
    """Group numbers by a key; None is equal to nothing, and groups of one are dropped."""
    groups: dict[object, list[int]] = defaultdict(list)
    for number in numbers:
        if (value := key(number)) is not None:
            groups[value].append(number)
    return [group for group in groups.values() if len(group) > 1]


def _size(source: Source, entry: Entry) -> int | None:
    if source.shards is not None:
        assert entry.index is not None
        try:
            return source.shards.image_size(entry.index)
        except BrokenSample:
            return None
    size = entry.version.partition("-")[0]
    return int(size) if size.isdecimal() else None


def _read_all(
    source: Source, numbers: Sequence[int], digest: Callable[[Source, Entry], bytes | None]
) -> Iterable[bytes | None]:
    if source.shards is not None:  # one thread at a time, and shard after shard
        wanted = set(numbers)
        found = {n: digest(source, source.entries[n]) for n in _in_order_of_shards(source) if n in wanted}
        return [found[number] for number in numbers]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda number: digest(source, source.entries[number]), numbers))


def _pieces(source: Source, entry: Entry) -> bytes | None:
    """Hash of the beginning, the middle, and the end; None if they cannot be read."""
    if source.shards is not None or entry.frames:
        return _whole(source, entry)
    try:
        with open(entry.path, "rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256()
            for start in (0, size // 2, max(0, size - _PIECE)):
                file.seek(start)
                digest.update(file.read(_PIECE))
    except OSError:
        return None
    return digest.digest()


def _whole(source: Source, entry: Entry) -> bytes | None:
    try:
        return source.digest(entry)
    except (OSError, BrokenSample):
        return None


def _report(
    division: Division, source: Source, groups: list[list[int]], labels: Sequence[Label], chosen: set[int]
) -> None:
    entries, what = source.entries, f"{source.main}s"

    def pair(numbers: Sequence[int]) -> str:
        return f"such as {entries[numbers[0]].path} and {entries[numbers[1]].path}"

    if groups:
        count = sum(len(group) - 1 for group in groups)
        division.notes.append(f"exact copies of other {what}, kept on one side: {count:,}, {pair(groups[0])}")
    both = [
        (outside[0], inside[0])
        for group in groups
        if (inside := [n for n in group if n in chosen]) and (outside := [n for n in group if n not in chosen])
    ]
    if both:
        division.leaked = True
        division.notes[-1] = (
            f"copies of {len(both):,} {what} are on both sides of the split, because an earlier version chose the "
            f"held-out {what}, {pair(both[0])}; --overwrite splits them again"
        )
    differ = [group for group in groups if len({labels[number] for number in group}) > 1]
    if differ:
        first = next([differ[0][0], n] for n in differ[0] if labels[n] != labels[differ[0][0]])
        division.notes.append(f"copies of {len(differ):,} {what} have different labels, {pair(first)}")
