"""Classes of shards whose labels `data.label` names: counted once for a shard, and kept next to its index."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swinv2_train.data.card import Card
from swinv2_train.data.class_order import in_order
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.index_store import places_next_to
from swinv2_train.data.label_source import LabelSource
from swinv2_train.data.labels import class_numbers
from swinv2_train.data.samples import IMAGE
from swinv2_train.data.shards import ShardSet
from swinv2_train.reading import UnreadableError, from_object, read_object
from swinv2_train.writing import write_bytes

logger = logging.getLogger(__name__)
_FORMAT = 1
_MOST = 100_000
"""Highest number of different names: a field with more is not a class."""


@dataclass
class LabelCounts:
    """Labels of a shard, or of several."""

    numbers: dict[str, int] = field(default_factory=dict)
    """Samples per class number."""
    names: dict[str, int] = field(default_factory=dict)
    """Samples per name of a class."""
    unusable: int = 0
    """Samples without a label that can be used."""
    first: str = ""
    """Key of the first of them, and the reason."""

    def add(self, other: LabelCounts) -> None:
        """Count another shard in."""
        for name in ("numbers", "names"):
            setattr(self, name, dict(Counter(getattr(self, name)) + Counter(getattr(other, name))))
        self.unusable += other.unusable
        self.first = self.first or other.first


def with_classes(
    shards: ShardSet, label: str | None, names: Sequence[str] | None = None, *, warn: bool = True
) -> ShardSet:
    """Put the classes that `data.label` names on the card of a set; without it, the set stays as it is.

    Args:
        names: those of the training data, which number the classes of held-out shards.
        warn: log how many samples have no label.

    Returns:
        The set, changed in place.

    Raises:
        DataError: if no sample has such a label, they are not classes, or one of them is not among `names`.
    """
    if label is None:
        return shards
    counts = LabelCounts()
    for number in range(len(shards.shards)):
        counts.add(_counted(shards, number, label))
        if len(counts.names) > _MOST:
            example = next(iter(counts.names))
            raise DataError(
                f"data.label={label} has more than {_MOST:,} different values, such as {example!r:.60}, so it is not a "
                "class"
            )
    if counts.numbers and counts.names:
        number, name = next(iter(counts.numbers)), next(iter(counts.names))
        raise DataError(f"data.label={label} has numbers ({number}) and names ({name!r:.60}): use one of both")
    if not counts.numbers and not counts.names:
        fix = "set data.label to where it is, or data.label=null for the members cls and json"
        raise DataError(f"data.label={label}: no sample has this label (first: {counts.first}); {fix}")
    if counts.unusable and warn:
        logger.warning(
            "data.label=%s: %s of %s samples have no label that can be used (first: %s)",
            label,
            f"{counts.unusable:,}",
            f"{shards.num_samples:,}",
            counts.first,
        )
    card = shards.card or Card(num_samples=shards.num_samples)
    found = _numbered(counts, names, card.class_names)
    shards.card = replace(card, class_names=found[0], class_counts=found[1], class_lists_differ=False)
    return shards


def _numbered(
    counts: LabelCounts, names: Sequence[str] | None, packed: list[str] | None
) -> tuple[list[str] | None, Counter[int]]:
    """Return the names of the classes, if they have any, and the samples per class.

    Args:
        packed: names of the classes that the shards were packed with, which apply to numbers below their count.

    Raises:
        DataError: if a class is not among `names`.
    """
    if counts.numbers:
        numbers = Counter({int(number): count for number, count in counts.numbers.items()})
        return packed if packed and max(numbers) < len(packed) else None, numbers
    ordered = in_order(counts.names) if names is None else list(names)
    known = {name: number for number, name in enumerate(ordered)}
    unknown = next((name for name in in_order(counts.names) if name not in known), None)
    if unknown is not None:
        raise DataError(f"the class {unknown!r:.60} is not among the {len(ordered)} classes of the training shards")
    return ordered, Counter({known[name]: count for name, count in counts.names.items()})


def _counted(shards: ShardSet, number: int, label: str) -> LabelCounts:
    """Return the labels of one shard, from the file next to its index if that is of this tar."""
    shard = shards.shards[number]
    state = {"format": _FORMAT, "label": label, "content": shard.content, "samples": shard.num_samples}
    if shards.scope.main != IMAGE:
        state["main"] = shards.scope.main
    if shard.file is None:
        state["time"] = Path(shard.url).stat().st_mtime_ns
    places = places_next_to(shard.url, shards.cache, shard.file, f".labels-{_short(label)}.json")
    for place in places:
        found = _read(place, state)
        if found is not None:
            return found
    counts = _count(shards, number, label)
    content = {**state, "counts": vars(counts), "sha256": _digest(state, vars(counts))}
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, json.dumps(content).encode())
        except OSError:
            continue
        return counts
    logger.warning("cannot store the classes of %s anywhere; counting them every time", shard.url)
    return counts


def _count(shards: ShardSet, number: int, label: str) -> LabelCounts:
    source, counts = LabelSource(label), LabelCounts()
    first = int(shards.shards.num_samples[:number].sum())
    logger.info("counting the classes of %s", shards.shards[number].url)
    numbers: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for index in range(first, first + shards.shards[number].num_samples):
        try:
            raw = shards.read(index, source.members)
            values = dict.fromkeys(source.values(raw))
            class_numbers([value for value in values if isinstance(value, int)])
            for value in values:
                (numbers if isinstance(value, int) else names)[str(value)] += 1
        except BrokenSample as error:
            counts.unusable += 1
            counts.first = counts.first or f"{shards.name(index)}: {error.reason}"
    counts.numbers, counts.names = dict(numbers), dict(names)
    return counts


def _read(place: Path, state: dict[str, Any]) -> LabelCounts | None:
    try:
        content = read_object(place)
        if any(content.get(key) != value for key, value in state.items()):
            return None
        if content.get("sha256") != _digest(state, content.get("counts")):
            raise UnreadableError("its hash differs")
        return from_object(LabelCounts, content["counts"])
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        logger.warning("ignoring %s (%s); counting the classes again", place, error)
        return None


def _digest(state: dict[str, Any], counts: Any) -> str:
    return hashlib.sha256(json.dumps([state, counts], sort_keys=True).encode()).hexdigest()


def _short(label: str) -> str:
    return hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()[:8]
