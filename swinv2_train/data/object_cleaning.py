"""Counts of the objects that packing drops or changes, with the first names, by reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_NAMED = 10
REVERSED, NO_BNDBOX = "reversed", "no bndbox"
DROPPED = {
    "unknown image": "the image is not listed",
    "unknown category": "the category is not listed",
    "no box": "neither a bbox nor a segmentation",
    NO_BNDBOX: "the object has no bndbox with xmin, ymin, xmax, and ymax",
    REVERSED: "the right side is left of the left one, or the bottom above the top",
    "no numbers": "the bbox is not four finite numbers",
    "outside": "the box is outside of the image, or the mask is, or leaves it by more than its size",
    "degenerate": "the box is less than 1 pixel wide or high",
    "mask": "the segmentation is neither polygons of three points or more nor run lengths that fill the image",
    "empty mask": "the run lengths mark no pixel",
    "mask size": "the run lengths are for another image size",
    "repeated": "a copy of another annotation with the same id",
}
"""Why objects are dropped, by kind."""
CHANGED = {
    "ignored": "the flag ignore is set, so it is left out",
    "clipped": "the box leaves the image, so it is cut at the border",
    "polygon": "a polygon of fewer than three points is left out of the mask",
    "part outside": "a polygon that is outside of the image, or leaves it by more than its size, is left out of the "
    "mask",
    "area": "there is no area, so it is computed from the mask or the box",
    "iscrowd": "there is no iscrowd, so it is a single object",
    "id": "the id is that of another annotation, too, so it is left out",
}
"""Changes that lose nothing that the source wants to keep, by kind."""


@dataclass
class Cleaning:
    """Objects that were dropped or changed: counts and the first names, by kind."""

    counts: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        self.merge(Cleaning({kind: (1, [name])}))

    def merge(self, other: Cleaning) -> None:
        """Count others in."""
        for kind, (count, names) in other.counts.items():
            before, first = self.counts.get(kind, (0, []))
            self.counts[kind] = (before + count, [*first, *names][:_NAMED])

    @property
    def lost(self) -> bool:
        """True if an object was dropped that the source wants to keep."""
        return any(kind in DROPPED for kind in self.counts)

    def rows(self) -> list[dict[str, Any]]:
        """Return {"objects", "reason", "dropped", "first"} of every kind, the dropped ones first."""
        return [
            {
                "objects": self.counts[kind][0],
                "reason": reason,
                "dropped": kind in DROPPED,
                "first": self.counts[kind][1],
            }
            for kind, reason in (DROPPED | CHANGED).items()
            if kind in self.counts
        ]

    def to_json(self) -> dict[str, Any]:
        return {kind: [count, names] for kind, (count, names) in self.counts.items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Cleaning:
        """Return the counts that `to_json` wrote."""
        return cls({kind: (int(count), list(map(str, names))) for kind, (count, names) in content.items()})
