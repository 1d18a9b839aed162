"""Numbers of categories: contiguous from 0, in the order of their ids, or as in an earlier split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from swinv2_train.data.card import Card
from swinv2_train.data.card_objects import Category
from swinv2_train.data.class_names import read_class_names
from swinv2_train.data.class_order import in_order
from swinv2_train.data.errors import DataError
from swinv2_train.data.sources import MANIFEST_SUFFIX, parse_manifest


def category_table(found: Sequence[Category], known: Sequence[Category] | None, where: str) -> list[Category]:
    """Return the categories in the order of their numbers.

    Args:
        found: those of the source. Two splits of one data set may list them in another order.
        known: those of an earlier split, whose numbers are kept; None: the order of the ids, numbers before texts, or
            without ids that of the names.
        where: name of the source in messages.

    Raises:
        DataError: if two categories have the same id or name, or one is not among those that are known.
    """
    ids, names = [one.id for one in found if one.id is not None], [one.name for one in found]
    for what, values in (("id", ids), ("name", names)):
        twice = next((value for value, count in Counter(values).items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{where}: two categories have the {what} {twice!r:.60}; give each its own")
    by_name = {one.name: one for one in found}
    if known is not None:
        unknown = next((name for name in names if name not in {one.name for one in known}), None)
        if unknown is not None:
            raise DataError(
                f"{where}: the category {unknown!r:.60} is not among the {len(known)} names of --class-names"
            )
        return [by_name.get(one.name) or replace(one, id=None if one.id in ids else one.id) for one in known]
    if len(ids) < len(found):
        return [by_name[name] for name in in_order(by_name)]
    return sorted(found, key=lambda one: (0, one.id, "") if isinstance(one.id, int) else (1, 0, str(one.id)))


def read_categories(path: Path) -> list[Category]:
    """Read the categories of an earlier split, or names of classes as `read_class_names` does. Raises DataError."""
    names = read_class_names(path)
    if path.name.endswith(MANIFEST_SUFFIX):
        objects = Card.from_json(parse_manifest(path.read_bytes(), str(path)).card).objects
        if objects is not None and [one.name for one in objects.categories] == names:
            return objects.categories
    return [Category(None, name) for name in names]
