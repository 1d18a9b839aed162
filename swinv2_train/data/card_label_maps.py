"""Part of a dataset card about label maps: pixels and images per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from swinv2_train.class_lists import lists_differ
from swinv2_train.data.errors import DataError
from swinv2_train.reading import is_count

MEMBER = "seg.png"
"""Member with the label map of a packed sample."""
_NARROW, _WIDE = 255, 65535
_SHOWN = 30
"""Classes in the table of a card; of more, those with the most pixels."""


def ignore_value(num_classes: int) -> int:
    """Return the value of pixels without a class in packed label maps: 255 if 8 bits are enough, else 65535."""
    return _NARROW if num_classes <= _NARROW else _WIDE


@dataclass
class LabelMapFacts:
    """Counts over the label maps of a set, or of one image."""

    ignore: int = _NARROW
    """Value of pixels without a class: 255 in maps of 8 bits, 65535 in maps of 16 bits."""
    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels per class."""
    ignored: int = 0
    """Pixels without a class."""
    images: Counter[int] = field(default_factory=Counter)
    """Samples per class that they have a pixel of."""
    names: list[str] | None = None
    """Names of the classes if the samples have objects as well, whose categories are the `class_names` of the card."""
    names_differ: bool = False
    """True if merged cards have other names; not stored."""

    @classmethod
    def of(cls, labels: np.ndarray, ignore: int) -> LabelMapFacts:
        """Count one label map, (H, W) uint8 or uint16."""
        counts = np.bincount(labels.ravel(), minlength=ignore + 1)
        ignored = int(counts[ignore])
        counts[ignore] = 0
        present = np.flatnonzero(counts).tolist()
        return cls(ignore, Counter({k: int(counts[k]) for k in present}), ignored, Counter(present))

    def add(self, other: LabelMapFacts) -> None:
        """Count others in. Raises DataError if pixels without a class have another value there."""
        if self.ignore != other.ignore:
            raise DataError(
                f"label maps with {self.ignore} and with {other.ignore} for pixels without a class cannot be read "
                "together: pack both sets with the same --classes-file"
            )
        self.pixels.update(other.pixels)
        self.images.update(other.images)
        self.ignored += other.ignored
        self.names_differ |= other.names_differ or lists_differ(self.names, other.names)
        self.names = self.names or other.names

    def copy(self) -> LabelMapFacts:
        """Return a copy that can be added to."""
        return replace(self, pixels=Counter(self.pixels), images=Counter(self.images))

    @property
    def num_classes(self) -> int | None:
        """Number of the names, or as the highest number of a pixel implies it; None without a pixel."""
        return len(self.names or ()) or (max(self.pixels) + 1 if self.pixels else None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same counts."""
        return {
            "ignore": self.ignore,
            "ignored": self.ignored,
            "pixels": {str(k): self.pixels[k] for k in sorted(self.pixels)},
            "images": {str(k): self.images[k] for k in sorted(self.images)},
            **({"names": self.names} if self.names else {}),
        }

    @classmethod
    def from_json(cls, content: Any) -> LabelMapFacts:
        """Read counts that `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if they are something else.
        """
        numbers = [content["ignore"], content["ignored"], *content["pixels"].values(), *content["images"].values()]
        wrong = next((number for number in numbers if not is_count(number)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is not a count")
        counters = [Counter({int(k): n for k, n in content[name].items()}) for name in ("pixels", "images")]
        names = content.get("names")
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("names is not a list of names")
        return cls(content["ignore"], counters[0], content["ignored"], counters[1], names)

    def rows(self, names: Sequence[str] | None) -> list[tuple[str, str]]:
        """Return lines of a table: every class with its share of the pixels, rare classes of many together.

        Args:
            names: of the classes; None: the numbers are shown.
        """
        total = self.pixels.total()
        every = total + self.ignored
        classes = range(len(names)) if names else range(self.num_classes or 0)
        ignored = f", {_share(self.ignored, every)} of them without a class ({self.ignore})" if self.ignored else ""
        rows = [("label maps", f"{every:,} pixels{ignored}")]
        shown = sorted(sorted(classes, key=lambda k: -self.pixels[k])[:_SHOWN])
        for k in shown:
            name = f"class {k}" + (f", {names[k]}" if names else "")
            samples = f"{self.images[k]:,} sample{'' if self.images[k] == 1 else 's'}"
            rows.append((name, f"{_share(self.pixels[k], total)} of the labeled pixels, in {samples}"))
        rest = [k for k in classes if k not in shown]
        if rest:
            share = _share(sum(self.pixels[k] for k in rest), total)
            rows.append((f"{len(rest):,} other classes", f"{share} of the labeled pixels"))
        empty = [k for k in classes if not self.pixels[k]]
        if empty:
            listed = ", ".join(str(names[k]) if names else str(k) for k in empty[:10])
            rows.append(("classes without a pixel", f"{len(empty):,}: {listed}{', ...' if empty[10:] else ''}"))
        return rows


def _share(part: int, total: int) -> str:
    return f"{part / total:.2%}" if total else "0.00%"
