"""The classes of a sample, from the text members of its shard."""

from __future__ import annotations

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.shards import RawSample

_HIGHEST = 9_999_999


def read_labels(raw: RawSample) -> tuple[int, ...]:
    """The class numbers of a sample: `json` with {"labels": [...]}, else `cls` with numbers separated by commas.

    Raises BrokenSample where there are none, or what stands there is no list of class numbers. A list may be empty: an
    image without any of the classes.
    """
    listed = raw.metadata.get("labels")
    if listed is not None:
        if not isinstance(listed, list) or not all(type(label) is int for label in listed):
            raise BrokenSample(f"its labels {listed!r:.60} are no list of class numbers")
        return _possible(listed)
    if "cls" not in raw.texts:
        raise BrokenSample("it has no label (no member cls, and no labels in a member json)")
    text = raw.texts["cls"].decode("utf-8", "replace").strip()
    try:
        labels = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise BrokenSample(f"its label {text!r:.60} is no class number") from None
    return _possible(labels)


def _possible(labels: list[int]) -> tuple[int, ...]:
    """The labels, each once. The highest decides how many classes a head has, so it is bounded."""
    high = next((label for label in labels if label > _HIGHEST), None)
    if high is not None:
        raise BrokenSample(f"its label {str(high)[:30]} is above {_HIGHEST:,}, the highest class number")
    return tuple(dict.fromkeys(labels))


def known_labels(raw: RawSample) -> tuple[int, ...] | None:
    """As `read_labels`, for counting: None where there are none."""
    try:
        return read_labels(raw)
    except BrokenSample:
        return None


def checked_labels(raw: RawSample, num_classes: int, *, multi_label: bool) -> tuple[int, ...]:
    """The labels of a sample that is to be trained or evaluated with: exactly one, unless `multi_label`.

    Raises BrokenSample where they are not so, or one of them is outside 0 to `num_classes` - 1.
    """
    labels = read_labels(raw)
    if not multi_label and len(labels) != 1:
        count = "no label" if not labels else f"{len(labels)} labels"
        raise BrokenSample(f"it has {count} where there must be one (task.multi_label=true takes any number)")
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise BrokenSample(f"its label {outside[0]} is outside 0 to {num_classes - 1}")
    return labels
