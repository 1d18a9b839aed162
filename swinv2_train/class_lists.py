"""Comparison of two lists of class names, which match apart from case, spaces, and underscores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_SHOWN = 5


def plain_name(name: str) -> str:
    """Return the form of a name that is compared: Objects365 has `Person`, COCO `person`."""
    return " ".join(name.replace("_", " ").split()).casefold()


def numbers_by_name(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Return the number of the known class of the same name for each name; None if there is none.

    Equal names come first, then names that match. A name that a list has twice (ImageNet has two classes `crane`) is
    ambiguous and matches none.
    """
    exact = _matched(names, known)
    rest = [number for number in range(len(known)) if number not in exact]
    loose = _matched(list(map(plain_name, names)), [plain_name(known[number]) for number in rest])
    return [
        number if number is not None or other is None else rest[other]
        for number, other in zip(exact, loose, strict=True)
    ]


def _matched(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Return the number of the known class with this very name for each name, if both lists have it once."""
    repeated = {name for each in (names, known) for name, count in Counter(each).items() if count > 1}
    numbers = {name: number for number, name in enumerate(known) if name not in repeated}
    return [numbers.get(name) for name in names]


def lists_differ(first: Sequence[str] | None, second: Sequence[str] | None) -> bool:
    """Return whether two lists give the classes other numbers, as far as both have names."""
    return bool(first and second) and list(map(plain_name, first or ())) != list(map(plain_name, second or ()))


def difference(first: Sequence[str], second: Sequence[str], *, places: tuple[str, str]) -> str | None:
    """Return how two lists differ, naming classes: those that only one has, else the first with another name.

    Args:
        places: of the lists, in the text, such as "the model".
    """
    if not lists_differ(first, second):
        return None
    found = []
    for names, others, place in ((first, second, places[0]), (second, first, places[1])):
        known = set(map(plain_name, others))
        alone = [name for name in names if plain_name(name) not in known]
        if alone:
            more = ", ..." if alone[_SHOWN:] else ""
            found.append(f"{', '.join(map(repr, alone[:_SHOWN]))}{more} only in {place}")
    pairs = enumerate(zip(first, second, strict=False))
    moved = [f"class {n} is {a!r} and {b!r}" for n, (a, b) in pairs if plain_name(a) != plain_name(b)]
    return " and ".join(found) or (moved[0] if moved else f"{len(first)} and {len(second)} classes")
