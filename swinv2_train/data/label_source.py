"""Labels in places that `data.label` names: a text member such as label.cls, or a field of a JSON member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from swinv2_train.data.class_order import is_number
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.labels import class_numbers, read_labels
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.reading import UnreadableError, parse_json

Label = int | str
_TEXTS = ("cls", "txt")
_JSON = "json"
_LONGEST = 200
"""Characters of the longest name of a class; more is a text."""


@dataclass(frozen=True)
class LabelSource:
    """Reader of the labels of samples. Sent to the workers."""

    spec: str | None = None
    """`data.label`; None: `labels` in the member json, else the member cls."""
    names: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers, for labels that are names."""

    @classmethod
    def of(cls, spec: str | None, names: Sequence[str] | None) -> LabelSource:
        """Return the reader for `data.label` and the names of the classes of the data."""
        return cls(spec, None if spec is None or names is None else tuple(names))

    @property
    def members(self) -> tuple[str, ...]:
        """Members that it reads."""
        return ("cls", "json") if self.spec is None else (self._place[0],)

    def read(self, raw: RawSample) -> tuple[int, ...]:
        """Return the class numbers of a sample.

        Raises:
            BrokenSample: if it has no label, or one that is neither a class number nor the name of a class.
        """
        if self.spec is None:
            return read_labels(raw)
        numbers = []
        for label in self.values(raw):
            if isinstance(label, int):
                numbers.append(label)
            elif label in self._numbers:
                numbers.append(self._numbers[label])
            else:
                expected = f"one of the {len(self.names)} classes of the data" if self.names else "a class number"
                raise BrokenSample(f"its label {label!r:.60} ({self.spec}) is not {expected}")
        return class_numbers(numbers)

    def values(self, raw: RawSample) -> tuple[Label, ...]:
        """Return the labels of a sample as they are stored: class numbers or names.

        Raises:
            BrokenSample: if it has none, or one that is neither a number nor a short text.
        """
        member, field = self._place
        if member not in raw.members:
            raise BrokenSample(f"it has no label (no member {member})")
        if field is None:
            text = raw.members[member].decode("utf-8", "replace").strip()
            parts = [part.strip() for part in text.split(",")] if member.rpartition(".")[2] == "cls" else [text]
            return tuple(self._label(part) for part in parts if part)
        try:
            found = _looked_up(parse_json(raw.members[member]), field)
        except UnreadableError as error:
            raise BrokenSample(f"it has no label: its member {member} is {error}") from None
        if found is None:
            raise BrokenSample(f"it has no label (no {field} in its member {member})")
        return tuple(self._label(each) for each in (found if isinstance(found, list) else [found]))

    def _label(self, value: Any) -> Label:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        text = value.strip() if isinstance(value, str) else ""
        if not 0 < len(text) <= _LONGEST:
            raise BrokenSample(f"its label {value!r:.60} ({self.spec}) is neither a number nor a name")
        return int(text) if is_number(text) else text

    @property
    def _place(self) -> tuple[str, str | None]:
        """The member, and the field in it if the member is JSON."""
        assert self.spec is not None
        member, mark, field = self.spec.partition(":")
        if mark:
            return member, field
        last = member.rpartition(".")[2]
        return (member, None) if last in _TEXTS else (_JSON, member)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names or ())}


def _looked_up(content: Any, field: str) -> Any:
    """Return the value of a field, which may be inside other objects (meta.species); None if there is none."""
    if not isinstance(content, dict):
        return None
    if field in content:
        return content[field]
    first, mark, rest = field.partition(".")
    return _looked_up(content.get(first), rest) if mark else None
