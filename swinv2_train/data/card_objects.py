"""Part of a dataset card about objects: the categories, and counts of objects and of images per category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from swinv2_train.class_lists import plain_name
from swinv2_train.data.objects import Objects
from swinv2_train.reading import is_count

SMALL, MEDIUM = 32**2, 96**2
"""Areas in pixels from which COCO calls an object medium and large."""
_SHOWN = 30
"""Categories in the table of a card; of more, those with the most objects."""
_SUMS = ("images", "empty", "crowd", "masks", "small", "medium", "large")
_COUNTERS = ("objects", "with_category")


@dataclass(frozen=True)
class Category:
    """A category as its source names it; its number is its place in the table of the card."""

    id: int | str | None
    """Original id; None if the source has only names."""
    name: str
    supercategory: str | None = None


def differing_id(first: Sequence[Category], second: Sequence[Category]) -> tuple[str, int | str, int | str] | None:
    """Return the name of the first category to which two tables give other ids, and both; None if there is none."""
    for one, other in zip(first, second, strict=False):
        if None not in (one.id, other.id) and one.id != other.id and plain_name(one.name) == plain_name(other.name):
            return one.name, one.id, other.id
    return None


def repeated_id(table: Sequence[Category]) -> tuple[str, str, int | str] | None:
    """Return the names of the first two categories of a table that have the same id, and it; None if none have."""
    names: dict[int | str, str] = {}
    for one in table:
        if one.id is not None and names.setdefault(one.id, one.name) != one.name:
            return names[one.id], one.name, one.id
    return None


def _completed(first: Sequence[Category], second: Sequence[Category]) -> list[Category]:
    """Return a table of the parts of a split with the ids of the second part for categories without one."""
    if not first:
        return list(second)
    table = list(first)
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one.id is None and plain_name(one.name) == plain_name(other.name):
            table[number] = replace(one, id=other.id)
    return table


@dataclass
class ObjectFacts:
    """Counts over the objects of a set, or of one image. Crowd regions only count as such."""

    categories: list[Category] = field(default_factory=list)
    """In the order of their numbers; empty on the card of a single shard or image."""
    objects: Counter[int] = field(default_factory=Counter)
    """Objects per category number."""
    with_category: Counter[int] = field(default_factory=Counter)
    """Images per category number that they have an object of."""
    images: int = 0
    empty: int = 0
    """Images without an object."""
    largest: int = 0
    """Most objects of an image."""
    largest_image: str | None = None
    """Key of the first image with that number; None if it is unknown."""
    crowd: int = 0
    """Crowd regions."""
    masks: int = 0
    """Objects with a mask."""
    small: int = 0
    """Objects with an area below `SMALL`."""
    medium: int = 0
    """Objects with an area from `SMALL` to below `MEDIUM`."""
    large: int = 0
    other_id: tuple[str, int | str, int | str] | None = None
    """Name of a category with other ids on merged cards, and two of them; not stored."""

    @classmethod
    def of(cls, found: Objects, key: str) -> ObjectFacts:
        """Count the objects of one image.

        Args:
            key: of its sample.
        """
        single = ~found.crowd
        numbers = found.categories[single].tolist()
        bands = np.searchsorted([SMALL, MEDIUM], found.areas[single], side="right")
        small, medium, large = np.bincount(bands, minlength=3).tolist()
        return cls(
            objects=Counter(numbers),
            with_category=Counter(set(numbers)),
            images=1,
            empty=int(not numbers),
            largest=len(numbers),
            largest_image=key if numbers else None,
            crowd=int(found.crowd.sum()),
            masks=sum(mask is not None and bool(one) for mask, one in zip(found.masks, single, strict=True)),
            small=small,
            medium=medium,
            large=large,
        )

    def add(self, other: ObjectFacts) -> None:
        """Count others in."""
        self.other_id = self.other_id or other.other_id or differing_id(self.categories, other.categories)
        self.categories = _completed(self.categories, other.categories)
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.largest > self.largest:
            self.largest, self.largest_image = other.largest, other.largest_image

    def copy(self) -> ObjectFacts:
        """Return a copy that can be added to."""
        found = ObjectFacts()
        found.add(self)
        return found

    @property
    def total(self) -> int:
        """Number of objects."""
        return self.objects.total()

    @property
    def all_masks(self) -> bool:
        """True if every object has a mask."""
        return 0 < self.total == self.masks

    @property
    def nothing(self) -> str | None:
        """Reason why no object can be learned; None if there are objects."""
        if self.total or not self.images:
            return None
        only = f"there are only crowd regions ({self.crowd:,})" if self.crowd else "no image has one"
        return f"no object can be learned: {only}"

    @property
    def num_classes(self) -> int | None:
        """Number of categories, or as the highest number of an object implies it; None without an object."""
        return len(self.categories) or (max(self.objects) + 1 if self.objects else None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same counts."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {
            "categories": [asdict(category) for category in self.categories],
            **{name: {str(k): counter[k] for k in sorted(counter)} for name, counter in counters.items()},
            **{name: getattr(self, name) for name in (*_SUMS, "largest", "largest_image")},
        }

    @classmethod
    def from_json(cls, content: Any) -> ObjectFacts:
        """Read counts that `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if they are something else.
        """
        counters = {name: Counter({int(k): n for k, n in content[name].items()}) for name in _COUNTERS}
        counts = {name: content[name] for name in (*_SUMS, "largest")}
        numbers = (*counts.values(), *(n for counter in counters.values() for n in counter.values()))
        wrong = [number for number in numbers if not is_count(number)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not a count")
        categories = [Category(**one) for one in content["categories"]]
        if not all(isinstance(category.name, str) for category in categories):
            raise ValueError("a category has no name")
        image = content.get("largest_image")  # earlier cards do not have it
        if not isinstance(image, str | None):
            raise ValueError(f"{image!r} is not the key of an image")
        return cls(categories, **counters, **counts, largest_image=image)

    def rows(self, names: Sequence[str] | None) -> list[tuple[str, str]]:
        """Return lines of a table: every category with its objects, rare ones of many together.

        Args:
            names: of the categories, in the order of their numbers; None: the numbers are shown.
        """
        mean = self.total / self.images if self.images else 0.0
        rows = [
            ("objects", f"{self.total:,}, {mean:.1f} per image, at most {self.largest:,}"),
            *([("objects to learn", f"none: {self.nothing.partition(': ')[2]}")] if self.nothing else []),
            ("images without objects", f"{self.empty:,}"),
            ("masks", f"{self.masks:,} of {self.total:,} objects"),
            ("small, medium, large", f"{self.small:,}, {self.medium:,}, {self.large:,}"),
        ]
        if self.crowd:
            rows.append(("crowd regions", f"{self.crowd:,}"))
        numbers = range(len(names) if names else self.num_classes or 0)
        shown = sorted(sorted(numbers, key=lambda k: -self.objects[k])[:_SHOWN])
        for k in shown:
            name = f"category {k}" + (f", {names[k]}" if names else "")
            rows.append((name, f"{self.objects[k]:,} objects in {self.with_category[k]:,} images"))
        rest = [k for k in numbers if k not in shown]
        if rest:
            rows.append((f"{len(rest):,} other categories", f"{sum(self.objects[k] for k in rest):,} objects"))
        unused = [k for k in numbers if not self.objects[k]]
        if unused:
            listed = ", ".join(str(names[k]) if names else str(k) for k in unused[:10])
            rows.append(("categories without an object", f"{len(unused):,}: {listed}{', ...' if unused[10:] else ''}"))
        return rows
