"""Rows of a classifier's head: the class of the source that each class of a model copies its row from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swinv2_train.class_lists import numbers_by_name
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
            return f"zeros; {self.unmatched(classes)}"
        more = ", ..." if len(new) > _MOST_NAMED else ""
        left = f"; {len(new)} new, zeros ({', '.join(new[:_MOST_NAMED])}{more})" if new else ""
        return f"{self.taken} of {counted(classes, 'row')} {self.by}{left}"

    def unmatched(self, classes: int) -> str:
        """Return why no row is taken, and the remedy. For the argument see `detail`."""
        return (
            f"none of the {len(self.rows)} classes has the name of one of the source's {classes}: "
            "init.label_map=numbers uses class n for class n, init.label_map=FILE uses a list of numbers"
        )

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

    Names match as in `class_lists.numbers_by_name`.
    """
    if not model or not source or list(model) == list(source):
        return None
    return HeadRows(numbers_by_name(model, source), "by class name", model)


def reason_for_new_head(rows: HeadRows | None, there: int, here: int, *, unnamed: bool) -> str | None:
    """Return why a model of clips keeps the small initial values of its head; None if it gets rows of the source.

    Args:
        rows: those of the label map or of equal names; None: class n for class n.
        there, here: classes of the source and of the model.
        unnamed: the source classifies images, and no names show that its classes are those of the model.
    """
    if rows is not None:
        return None if rows.taken else rows.unmatched(there)
    if there != here:
        return f"the source has {there} classes, the model {here}"
    if unnamed:
        return (
            "the classes of images and of clips are not known to be the same; init.label_map=numbers uses class n for "
            "class n"
        )
    return None
