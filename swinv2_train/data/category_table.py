"""Numbers of categories: contiguous from 0, in the order of their ids, or as in an earlier split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from swinv2_train.class_lists import numbers_by_name
from swinv2_train.data.card import Card
from swinv2_train.data.card_objects import Category
from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.class_order import in_order
from swinv2_train.data.errors import DataError
from swinv2_train.data.sources import MANIFEST_SUFFIX, parse_manifest

_SHOWN = 5


def category_table(
    found: Sequence[Category], known: Sequence[Category] | None, where: str
) -> tuple[list[Category], list[int]]:
    """Return the categories in the order of their numbers, and the number of each that was found.

    Args:
        found: those of the source. Two splits of one data set may list them in another order.
        known: those of an earlier split, whose names and numbers are kept, and whose names match apart from case; None:
            the order of the ids, numbers before texts, or without ids that of the names.
        where: name of the source in messages.

    Raises:
        DataError: if two categories have the same id or name, or one is not among those that are known.
    """
    ids, names = [one.id for one in found if one.id is not None], [one.name for one in found]
    for what, values in (("id", ids), ("name", names)):
        twice = next((value for value, count in Counter(values).items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{where}: two categories have the {what} {twice!r:.60}; give each its own")
    if known is not None:
        return _as_known(found, known, where)
    if len(ids) < len(found):
        order = {name: number for number, name in enumerate(in_order(names))}
        numbers = [order[name] for name in names]
    else:
        by_id = sorted(found, key=lambda one: (0, one.id, "") if isinstance(one.id, int) else (1, 0, str(one.id)))
        numbers = [by_id.index(one) for one in found]
    return [one for _, one in sorted(zip(numbers, found, strict=True), key=lambda pair: pair[0])], numbers


def _as_known(found: Sequence[Category], known: Sequence[Category], where: str) -> tuple[list[Category], list[int]]:
    """Return the known categories with the ids of those that were found; see `category_table`."""
    numbers, unknown = list[int](), list[str]()
    for one, number in zip(
        found, numbers_by_name([one.name for one in found], [one.name for one in known]), strict=True
    ):
        if number is None:
            unknown.append(repr(one.name)[:60])
        else:
            numbers.append(number)
    if unknown:
        more = ", ..." if unknown[_SHOWN:] else ""
        listed = f"{', '.join(unknown[:_SHOWN])}{more}"
        what = f"category {listed} is" if len(unknown) == 1 else f"categories {listed} are"
        raise DataError(f"{where}: the {what} not among the {len(known)} names of --class-names")
    own, ids = dict(zip(numbers, found, strict=True)), {one.id for one in found}
    # A category that this split lacks keeps the id of the earlier one, unless it is that of another category here.
    table = [replace(own.get(number, one), name=one.name) for number, one in enumerate(known)]
    return [one if n in own or one.id not in ids else replace(one, id=None) for n, one in enumerate(table)], numbers


def read_categories(path: Path) -> list[Category]:
    """Read the categories of an earlier split, or names of classes as `read_class_names` does. Raises DataError."""
    names = read_class_names(path)
    if path.name.endswith(MANIFEST_SUFFIX):
        objects = Card.from_json(parse_manifest(path.read_bytes(), str(path)).card).objects
        if objects is not None and [one.name for one in objects.categories] == names:
            return objects.categories
    return [Category(None, name) for name in names]
