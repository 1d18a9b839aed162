"""Classes of a sample, from the text members of its shard."""

from __future__ import annotations

import re
from collections.abc import Callable

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.reading import UnreadableError, parse_json

_HIGHEST = 9_999_999
"""Highest accepted class number: the highest one in the data determines the number of classes of a head."""
_CLASS_NUMBERS = re.compile(r"\s*[+-]?\d{1,18}\s*(,\s*[+-]?\d{1,18}\s*)*", re.ASCII)


def read_labels(raw: RawSample) -> tuple[int, ...]:
    """Return the class numbers of a sample: `json` with {"labels": [...]}, else `cls` with comma-separated numbers.

    Raises BrokenSample where there are none, or what stands there is no list of class numbers. A list may be empty: an
    image without any of the classes.
    """
    listed = raw.metadata.get("labels")
    if listed is not None:
        if not isinstance(listed, list) or not all(type(label) is int for label in listed):
            raise BrokenSample(f"its labels {listed!r:.60} are not a list of class numbers")
        return class_numbers(listed)
    if "cls" not in raw.texts:
        if "json" in raw.texts and not _is_json(raw.texts["json"]):
            raise BrokenSample("it has no label: its member json is not JSON")
        raise BrokenSample("it has no label (no member cls, and no labels in a member json)")
    text = raw.texts["cls"].decode("utf-8", "replace").strip()
    if text and not _CLASS_NUMBERS.fullmatch(text):
        raise BrokenSample(f"its label {text!r:.60} is not a class number")
    return class_numbers([int(part) for part in text.split(",")] if text else [])


def class_numbers(numbers: list[int]) -> tuple[int, ...]:
    """Return class numbers without repetitions. Raises BrokenSample if one is negative or too high for a class."""
    negative = [number for number in numbers if number < 0]
    if negative:
        raise BrokenSample(f"its label {negative[0]} is negative")
    high = max(numbers, default=0)
    if high > _HIGHEST:
        raise BrokenSample(f"its label {str(high)[:30]} is above {_HIGHEST:,}, the highest class number")
    return tuple(dict.fromkeys(numbers))


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except UnreadableError:
        return False
    return True


def known_labels(raw: RawSample) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the class numbers, for counting, or None; and why the label of a sample that has one cannot be used."""
    try:
        return read_labels(raw), None
    except BrokenSample as error:
        has_one = "cls" in raw.texts or "labels" in raw.metadata or not _is_json(raw.texts.get("json", b"{}"))
        return None, error.reason if has_one else None


def checked_labels(
    raw: RawSample,
    num_classes: int,
    *,
    multi_label: bool,
    read: Callable[[RawSample], tuple[int, ...]] = read_labels,
) -> tuple[int, ...]:
    """Return the labels of a sample for training or evaluation: exactly one, unless `multi_label`.

    `read` is the function that finds them, such as `LabelSource.read`.

    Raises BrokenSample if there is another number of them, or one is outside 0 to `num_classes` - 1.
    """
    labels = read(raw)
    if not multi_label and len(labels) != 1:
        count = "no label" if not labels else f"{len(labels)} labels"
        raise BrokenSample(f"it has {count} where there must be one (task.multi_label=true takes any number)")
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise BrokenSample(f"its label {outside[0]} is outside 0 to {num_classes - 1}")
    return labels
