"""Statistics of the stored values of images, per channel, of every pixel that has data. They add up over images and
shards, and do not depend on their order beyond rounding.

Number, range, mean, and variance are exact: float64, combined as in Chan, Golub, and LeVeque (1983), "Algorithms for
Computing the Sample Variance". Percentiles come from a histogram of at most `MOST_BINS` bins. Its bins are ranges of
float32 numbers that agree in sign, exponent, and the first bits of the fraction. As many bits are kept as fit, so
percentiles are exact for up to `MOST_BINS` different values, and otherwise within one bin. Which bins there are depends
only on the values, not on the order or the parts in which they were added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swinv2_train.text import counted

MOST_BINS = 1024
_SIGN = np.uint32(1 << 31)
_BITS = 32
_FINITE = 0x00800000, 0xFF7FFFFF  # the ordered representations of the lowest and the highest finite number


@dataclass
class Histogram:
    """Counts of float32 values by the first bits of their ordered representation."""

    shift: int = 0
    """Last bits of a value that its bin does not distinguish."""
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(bins,) int64, sorted: the first bits of the values in each bin."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(bins,) int64: values in each bin, above 0."""

    @classmethod
    def of(cls, values: np.ndarray) -> Histogram:
        """Count finite values of any shape."""
        if values.dtype == np.uint16:  # counting is many times faster than sorting
            table = np.bincount(values.ravel(), minlength=1 << 16)
            present = np.flatnonzero(table)
            keys, counts = _ordered(present), table[present]
        else:
            keys, counts = np.unique(_ordered(values.ravel()), return_counts=True)
        return cls(0, keys.astype(np.int64), counts.astype(np.int64))._bounded()

    def add(self, other: Histogram) -> None:
        """Count another histogram in."""
        shift = max(self.shift, other.shift)
        keys = np.concatenate([one.keys >> (shift - one.shift) for one in (self, other)])
        merged = _merged(shift, keys, np.concatenate([self.counts, other.counts]))._bounded()
        self.shift, self.keys, self.counts = merged.shift, merged.keys, merged.counts

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest value of every bin, (bins,) float64."""
        first = self.keys << self.shift
        return _value(first), _value(first + (1 << self.shift) - 1)

    def _bounded(self) -> Histogram:
        found = self
        while len(found.keys) > MOST_BINS:
            found = _merged(found.shift + 1, found.keys >> 1, found.counts)
        return found


def _merged(shift: int, keys: np.ndarray, counts: np.ndarray) -> Histogram:
    found, places = np.unique(keys, return_inverse=True)
    total = np.zeros(len(found), np.int64)
    np.add.at(total, places, counts)
    return Histogram(shift, found, total)


def _ordered(values: np.ndarray) -> np.ndarray:
    """Return uint32 numbers in the order of the values: negative ones reversed, then the others."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _value(keys: np.ndarray) -> np.ndarray:
    keys = np.clip(keys, *_FINITE).astype(np.uint32)
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).view(np.float32).astype(np.float64)


@dataclass
class ChannelValues:
    """Statistics of one channel."""

    count: int = 0
    """Pixels with data."""
    missing: int = 0
    """Pixels without data: nodata, NaN, or infinite."""
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""
    low: float = math.inf
    high: float = -math.inf
    histogram: Histogram = field(default_factory=Histogram)

    @classmethod
    def of(cls, plane: np.ndarray, missing: np.ndarray) -> ChannelValues:
        """Measure one channel of one image: (H, W) of any type, and a mask that is True for pixels without data."""
        absent = int(np.count_nonzero(missing))
        values = plane[~missing] if absent else plane.ravel()
        if not values.size:
            return cls(missing=absent)
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        squares = float(np.square(wide - mean).sum())
        ends = float(wide.min()), float(wide.max())
        return cls(values.size, absent, mean, squares, *ends, Histogram.of(values))

    def add(self, other: ChannelValues) -> None:
        """Count another part of the channel in."""
        self.missing += other.missing
        if not other.count:
            return
        total, apart = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + apart * apart * (self.count * other.count / total)
        self.mean += apart * (other.count / total)
        self.count = total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.histogram.add(other.histogram)

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Return a percentile, interpolated linearly as numpy does."""
        rank = percent / 100 * (self.count - 1)
        first = min(int(rank), self.count - 1)
        low, high = (self._in_order(place) for place in (first, min(first + 1, self.count - 1)))
        return low + (high - low) * (rank - first)

    def _in_order(self, place: int) -> float:
        """Return the value at a place in the sorted values, spread evenly inside its bin."""
        if place in (0, self.count - 1):
            return self.low if place == 0 else self.high
        ends = np.cumsum(self.histogram.counts)
        number = int(np.searchsorted(ends, place, side="right"))
        inside = (place - (ends[number] - self.histogram.counts[number]) + 0.5) / self.histogram.counts[number]
        low, high = (edge[number] for edge in self.histogram.edges())
        return float(min(max(low + (high - low) * inside, self.low), self.high))

    def scaled(self, low: float, high: float) -> tuple[float, float]:
        """Return mean and standard deviation of the values after `low` became 0, `high` 1, and others were clipped.

        Exact if nothing is clipped or the histogram has single values; otherwise each value counts as the middle of
        its bin.
        """
        if low <= self.low and self.high <= high:
            return (self.mean - low) / (high - low), self.std / (high - low)
        middles = np.clip(np.mean(self.histogram.edges(), axis=0), self.low, self.high)
        unit = np.clip((middles - low) / (high - low), 0, 1)
        mean = float(np.average(unit, weights=self.histogram.counts))
        return mean, math.sqrt(float(np.average(np.square(unit - mean), weights=self.histogram.counts)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same statistics."""
        ends = {"low": self.low, "high": self.high} if self.count else {}
        counts = self.histogram.counts.tolist()
        bins = {"shift": self.histogram.shift, "keys": self.histogram.keys.tolist(), "counts": counts}
        numbers = {"count": self.count, "missing": self.missing, "mean": self.mean, "squares": self.squares}
        return {**numbers, **ends, "histogram": bins}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ChannelValues:
        """Read what `to_json` wrote. Raises ValueError, KeyError, or TypeError for anything else."""
        bins = content["histogram"]
        keys, counts = (np.array(bins[name], dtype=np.int64) for name in ("keys", "counts"))
        histogram = Histogram(int(bins["shift"]), keys, counts)
        numbers = [float(content[name]) for name in ("mean", "squares")]
        count, missing = int(content["count"]), int(content["missing"])
        sizes = keys.ndim == 1 and keys.shape == counts.shape and len(keys) <= MOST_BINS
        ordered = sizes and bool(np.all(np.diff(keys) > 0)) and bool(np.all(counts > 0))
        inside = ordered and 0 <= histogram.shift < _BITS and (not count or 0 <= keys[0] <= keys[-1] < 1 << _BITS)
        if not inside or counts.sum() != count or missing < 0 or not all(map(math.isfinite, numbers)):
            raise ValueError("its numbers contradict each other")
        ends = (float(content["low"]), float(content["high"])) if count else (math.inf, -math.inf)
        if count and not -math.inf < ends[0] <= ends[1] < math.inf:
            raise ValueError("its lowest and highest value contradict each other")
        return cls(count, missing, *numbers, *ends, histogram)


@dataclass
class ValueStats:
    """Statistics of the images with one number of channels."""

    images: int = 0
    incomplete: int = 0
    """Images with pixels without data."""
    types: Counter[str] = field(default_factory=Counter)
    """Images per type of their values, such as float32."""
    channels: list[ChannelValues] = field(default_factory=list)

    @classmethod
    def of(cls, planes: np.ndarray, missing: np.ndarray, kind: str) -> ValueStats:
        """Measure one image.

        Args:
            planes: (C, H, W) as stored.
            missing: (C, H, W) bool: True for pixels without data.
            kind: type of the stored values, such as float32.
        """
        channels = [ChannelValues.of(plane, mask) for plane, mask in zip(planes, missing, strict=True)]
        return cls(1, int(any(each.missing for each in channels)), Counter({kind: 1}), channels)

    def add(self, other: ValueStats) -> None:
        """Count other images with the same number of channels in."""
        self.images += other.images
        self.incomplete += other.incomplete
        self.types.update(other.types)
        self.channels = self.channels or [ChannelValues() for _ in other.channels]
        for own, added in zip(self.channels, other.channels, strict=True):
            own.add(added)

    @property
    def empty(self) -> bool:
        """True if no pixel has data."""
        return not any(each.count for each in self.channels)

    def repeated(self, channels: int) -> ValueStats:
        """Return the statistics of gray images that are read with several equal channels."""
        return ValueStats(self.images, self.incomplete, self.types, self.channels * channels)

    def scaled(self, ranges: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
        """Return per-channel mean and standard deviation in [0, 1] of the scaled and clipped values.

        Args:
            ranges: (low, high) of every channel.
        """
        found = [each.scaled(low, high) for each, (low, high) in zip(self.channels, ranges, strict=True)]
        return [mean for mean, _ in found], [std for _, std in found]

    def rows(self) -> list[tuple[str, str]]:
        """Return lines of a table: name and value."""

        def listed(name: str) -> str:
            return ", ".join(f"{getattr(each, name):.6g}" if each.count else "none" for each in self.channels)

        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(self.types.items()))
        number = f"{len(self.channels)} channels"
        rows = [(f"stored values, {number}", kinds)]
        rows += [(f"  {name}", listed(key)) for name, key in (("lowest", "low"), ("highest", "high"))]
        rows += [("  mean", listed("mean")), ("  std", listed("std"))]
        if self.incomplete:
            absent, total = (sum(getattr(each, name) for each in self.channels) for name in ("missing", "count"))
            share = absent / (absent + total)
            images = counted(self.incomplete, "image", ",")
            rows.append(("  without data", f"{counted(absent, 'value', ',')} ({share:.2%}) in {images}"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same statistics."""
        types = {kind: self.types[kind] for kind in sorted(self.types)}
        channels = [each.to_json() for each in self.channels]
        return {"images": self.images, "incomplete": self.incomplete, "types": types, "channels": channels}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ValueStats:
        """Read what `to_json` wrote. Raises ValueError, KeyError, or TypeError for anything else."""
        types = Counter({str(kind): int(count) for kind, count in content["types"].items()})
        channels = [ChannelValues.from_json(each) for each in content["channels"]]
        return cls(int(content["images"]), int(content["incomplete"]), types, channels)
