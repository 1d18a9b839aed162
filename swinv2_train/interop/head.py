"""Rows of a classifier's head: the class of the source that each class of a model copies its row from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from swinv2_train.text import counted

_MOST_NAMED = 4
"""Number of new classes that a line names."""


@dataclass(frozen=True)
class HeadRows:
    """Row of the source for each class of the model."""

    rows: list[int | None]
    """None: the class is new, and its row starts at 0."""
    by: str
    """Reason for this choice, such as "by class name"."""
    class_names: Sequence[str] | None = None
    """Names of the model's classes."""

    @property
    def taken(self) -> int:
        """Number of rows that come from the source."""
        return sum(row is not None for row in self.rows)

    def detail(self, classes: int) -> str:
        """Return a summary for the row of a tensor.

        Args:
            classes: number of classes of the source.
        """
        new = [self._name(number) for number, row in enumerate(self.rows) if row is None]
        if not self.taken:
            return (
                f"zeros; none of the {len(self.rows)} classes has the name of one of the source's {classes}: "
                "init.label_map=numbers uses class n for class n, init.label_map=FILE uses a list of numbers"
            )
        more = ", ..." if len(new) > _MOST_NAMED else ""
        left = f"; {len(new)} new, zeros ({', '.join(new[:_MOST_NAMED])}{more})" if new else ""
        return f"{self.taken} of {counted(classes, 'row')} {self.by}{left}"

    def lines(self, source_names: Sequence[str] | None) -> list[str]:
        """Return a line per class of the model: the origin of its row."""
        return [
            f"head row {number} ({self._name(number)}): {_origin(row, source_names)}"
            for number, row in enumerate(self.rows)
        ]

    def _name(self, number: int) -> str:
        return self.class_names[number] if self.class_names else f"class {number}"


def _origin(row: int | None, source_names: Sequence[str] | None) -> str:
    if row is None:
        return "new, zeros"
    return f"row {row} of the source" + (f" ({source_names[row]})" if source_names else "")


def rows_by_name(model: Sequence[str] | None, source: Sequence[str] | None) -> HeadRows | None:
    """Return the rows for classes of the same name; None if a side has no names or both lists are equal.

    Equal names come first. Then names that differ only in case, spaces, and underscores match (Objects365 has `Person`,
    COCO `person`). A name that a side has twice (ImageNet has two classes `crane`) is ambiguous and matches no row.
    """
    if not model or not source or list(model) == list(source):
        return None
    rows = _matched(model, source)
    rest = [number for number in range(len(source)) if number not in rows]
    loose = _matched([_plain(name) for name in model], [_plain(source[number]) for number in rest])
    return HeadRows(
        [row if row is not None or other is None else rest[other] for row, other in zip(rows, loose, strict=True)],
        "by class name",
        model,
    )


def _matched(model: Sequence[str], source: Sequence[str]) -> list[int | None]:
    """Return the number of the source's class of the same name for each class, if both sides have it once."""
    repeated = {name for names in (model, source) for name, count in Counter(names).items() if count > 1}
    known = {name: number for number, name in enumerate(source) if name not in repeated}
    return [known.get(name) for name in model]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
