"""Order in which classes are numbered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_MOST_DIGITS = 18


def is_number(name: str) -> bool:
    """Return whether the name of a class is a decimal number."""
    return name.isascii() and name.isdecimal() and len(name) <= _MOST_DIGITS


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of classes in the order of their numbers: as numbers if all are decimal, else as text."""
    found = sorted(names)
    return sorted(found, key=int) if all(map(is_number, found)) else found


def is_text_order_of_numbers(names: Sequence[str]) -> bool:
    """Return whether names are the numbers from 0 in the order of text (0, 1, 10, 2), as earlier versions packed them.

    The name of such a class is a number, and not its own.
    """
    numbers = [str(number) for number in range(len(names))]
    return list(names) != numbers and sorted(names) == sorted(numbers)
