"""Rules that turn label maps as users have them into those that are packed: class numbers from 0, one ignored value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from swinv2_train.data.card_label_maps import ignore_value
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.label_table import ValueTable, read_table

_UNKNOWN, _NO_CLASS = -1, -2
_MANY = 32
"""Different values that are not classes from which a map looks smoothed, not mislabeled."""
_SHOWN = 3
_MOST_CLASSES = 65535


@dataclass(frozen=True)
class LabelRules:
    """Meaning of the stored values of label maps."""

    names: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    ignore: int | None = None
    """Stored value of pixels without a class; None: every value is a class."""
    zero_is_ignore: bool = False
    """True if 0 means no class and the classes are numbered from 1, as in ADE20K."""
    table: ValueTable | None = None
    """Classes of colors or of other values; None: a value is the number of its class."""

    def __post_init__(self) -> None:
        """Raises DataError for rules that contradict each other."""
        if not 0 < len(self.names) <= _MOST_CLASSES:
            raise DataError(f"label maps can have 1 to {_MOST_CLASSES:,} classes, not {len(self.names):,}")
        if self.table is not None and self.zero_is_ignore:
            raise DataError("--zero-is-ignore numbers values, and --colors gives them classes: use one of the two")
        if self.ignore is None:
            return
        if self.colors:
            raise DataError(
                f"--ignore {self.ignore} is for maps of values: give the color of pixels without a class the class "
                "ignore in the table of --colors"
            )
        number = self._class_of(self.ignore)
        if number is not None:
            fix = "numbers them from 1" if self.ignore == 0 else "has the names of all classes"
            option = "--zero-is-ignore" if self.ignore == 0 else "--classes-file"
            raise DataError(
                f"--ignore {self.ignore} is class {self.names[number]!r} as well: omit --ignore, or check that "
                f"{option} {fix}"
            )

    @property
    def colors(self) -> bool:
        """True if label maps are color images."""
        return self.table is not None and self.table.colors

    @property
    def packed_ignore(self) -> int:
        """Value of pixels without a class in packed label maps."""
        return ignore_value(len(self.names))

    def packed(self, stored: np.ndarray) -> np.ndarray:
        """Return a label map as it is packed: (H, W) uint8, or uint16 for more than 255 classes.

        Args:
            stored: (H, W) uint8 or uint16 values, or with `colors` (H, W, 3) uint8.

        Raises:
            BrokenSample: if a value is not a class, with the values and their number of pixels.
        """
        keys = _codes(stored) if self.colors else stored
        places = np.searchsorted(self._known[0], keys)
        places[places == len(self._known[0])] = 0
        found = np.where(self._known[0][places] == keys, self._known[1][places], _UNKNOWN)
        unknown = found == _UNKNOWN
        if unknown.any():
            raise BrokenSample(self._problem(keys[unknown], stored))
        found[found == _NO_CLASS] = self.packed_ignore
        return found.astype(np.uint8 if self.packed_ignore < 256 else np.uint16)

    def _class_of(self, value: int) -> int | None:
        """Return the class that a stored value is, whatever `ignore` is; None if it is none."""
        if self.table is not None:
            number = dict(self.table.entries).get(value)
            return None if number is None or number < 0 else number
        number = value - self.zero_is_ignore
        return number if 0 <= number < len(self.names) else None

    @cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """The stored values (or codes of colors), sorted, and the class of each, or `_NO_CLASS`."""
        if self.table is not None:
            classes = {key: _NO_CLASS if number < 0 else number for key, number in self.table.entries}
        else:
            classes = {number + self.zero_is_ignore: number for number in range(len(self.names))}
        if self.zero_is_ignore:
            classes[0] = _NO_CLASS
        if self.ignore is not None:
            classes[self.ignore] = _NO_CLASS
        keys = sorted(classes)
        return np.array(keys, np.int64), np.array([classes[key] for key in keys], np.int32)

    def _problem(self, wrong: np.ndarray, stored: np.ndarray) -> str:
        """Return the message about values that are not classes, with the likely cause.

        Args:
            wrong: (N,) values, or codes of colors.
        """
        keys, counts = np.unique(wrong, return_counts=True)
        what = "colors" if self.colors else "values"
        if len(keys) >= _MANY:
            return (
                f"it has {len(keys):,} {what} that are not classes ({int(counts.sum()):,} pixels), as after smoothing "
                "or lossy compression: resize label maps with nearest neighbor and save them as PNG"
            )
        most = np.argsort(-counts, kind="stable")[:_SHOWN]
        listed = ", ".join(f"{self._shown(int(keys[i]))} ({_pixels(int(counts[i]))})" for i in most)
        more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        first = int(self.zero_is_ignore)
        known = (
            f"the {len(self._known[0])} {what} in the table of --colors"
            if self.table is not None
            else f"the classes {first} to {len(self.names) - 1 + first}"
        )
        which = (what if len(keys) > 1 else what[:-1]) + f" {listed}{more}"
        return f"{which} not among {known}{self._advice(set(keys.tolist()), stored)}"

    def _shown(self, key: int) -> str:
        return f"({key >> 16}, {key >> 8 & 255}, {key & 255})" if self.colors else str(key)

    def _advice(self, wrong: set[int], stored: np.ndarray) -> str:
        """Return the likely fix, if the values suggest one."""
        count = len(self.names)
        if self.table is not None:
            return ": add a row for each"
        if wrong == {255} and count == 2 and not (stored == 1).any():
            return "; if 255 is the second class, map it with --colors table.csv (columns value and class)"
        if wrong <= {255, 65535} and self.ignore is None:
            value = next(iter(wrong))
            return f"; if pixels of {value} have no class, add --ignore {value}"
        if wrong == {count} and not self.zero_is_ignore:
            return (
                "; if 0 means no class and the classes are numbered from 1, add --zero-is-ignore, else check that "
                "--classes-file has all names"
            )
        return ": check that --classes-file has all names"


def _pixels(count: int) -> str:
    return f"{count:,} pixel{'' if count == 1 else 's'}"


def _codes(colors: np.ndarray) -> np.ndarray:
    """Return (H, W) int64 codes of (H, W, 3) uint8 colors."""
    red, green, blue = (colors[..., channel].astype(np.int64) for channel in range(3))
    return red << 16 | green << 8 | blue


def read_rules(
    names: Sequence[str] | None, table: Path | None, ignore: int | None, *, zero_is_ignore: bool
) -> LabelRules:
    """Return the rules that options of `swinv2-data pack` set.

    Args:
        names: of the classes; None: those in the table.

    Raises:
        DataError: if the table cannot be read, the options contradict each other, or nothing names the classes.
    """
    if table is not None:
        found = read_table(table, names)
        return LabelRules(found.names, ignore, zero_is_ignore, found.values)
    if names is None:
        raise DataError(
            "--labels needs the names of the classes: add --classes-file FILE with a name per line, in the order of "
            "their numbers (or --colors TABLE with names)"
        )
    return LabelRules(tuple(names), ignore, zero_is_ignore)


def packed_rules(names: Sequence[str] | None, num_classes: int | None, ignore: int) -> LabelRules:
    """Return the rules of label maps that are packed already.

    Args:
        num_classes: as the dataset card implies it, for sets without names.
    """
    known = tuple(names) if names else tuple(str(number) for number in range(num_classes or 1))
    return LabelRules(known, ignore)
