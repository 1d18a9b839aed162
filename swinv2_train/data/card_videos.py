"""Part of a dataset card about videos: their lengths, frame rates, and codecs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_train.reading import is_count

if TYPE_CHECKING:
    from swinv2_train.data.video import VideoFacts

_LENGTH_EDGES = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SHOWN = 8
_ROUNDING = 0.0025
"""Seconds by which the durations of frames differ if their times are rounded to milliseconds, as in Matroska."""
_SUMS = ("videos", "frames", "milliseconds", "keyframes", "variable", "rotated")
_COUNTERS = ("rates", "lengths")


@dataclass
class VideoCounts:
    """Counts over the videos of a set, or of one. All are integers, so that the order of the videos does not matter."""

    videos: int = 0
    frames: int = 0
    milliseconds: int = 0
    keyframes: int = 0
    """Frames that decoding can start at."""
    variable: int = 0
    """Videos whose frames have different durations, by more than their container rounds them."""
    rotated: int = 0
    """Videos that are stored turned; they are read upright."""
    shortest: int = 0
    """Frames of the shortest video."""
    longest: int = 0
    """Frames of the longest video."""
    rates: Counter[int] = field(default_factory=Counter)
    """Videos per frame rate, in whole frames per second."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Videos per lower edge of the bin that their number of frames falls into."""
    codecs: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, facts: VideoFacts) -> VideoCounts:
        """Count one video."""
        return cls(
            videos=1,
            frames=facts.frames,
            milliseconds=round(1000 * facts.seconds),
            keyframes=len(facts.keyframes),
            variable=int(_is_variable(facts)),
            rotated=int(facts.rotation != 0),
            shortest=facts.frames,
            longest=facts.frames,
            rates=Counter([round(facts.fps)]),
            lengths=Counter([max(edge for edge in _LENGTH_EDGES if edge <= facts.frames)]),
            codecs=Counter([facts.codec]),
        )

    def add(self, other: VideoCounts) -> None:
        """Count others in."""
        self.shortest = min(one.shortest for one in (self, other) if one.videos) if self.videos or other.videos else 0
        self.longest = max(self.longest, other.longest)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in (*_COUNTERS, "codecs"):
            getattr(self, name).update(getattr(other, name))

    def copy(self) -> VideoCounts:
        """Return a copy that can be added to."""
        found = VideoCounts()
        found.add(self)
        return found

    @property
    def seconds(self) -> float:
        """Duration of all videos together."""
        return self.milliseconds / 1000

    def shorter_than(self, frames: int) -> tuple[int, bool]:
        """Return the number of videos with fewer frames, and True if it is exact; else there are at least that many.

        The lengths are only known by their bins, and those of the shortest and the longest video.
        """
        if frames > self.longest or frames <= self.shortest:
            return (self.videos if frames > self.longest else 0), True
        begun = sum(n for edge, n in self.lengths.items() if edge < frames)
        ended = sum(n for edge, n in self.lengths.items() if _last_of_bin(edge) < frames)
        return max(ended, 1), ended == begun

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same counts."""
        numbers = {name: getattr(self, name) for name in (*_SUMS, "shortest", "longest")}
        counters = {name: {str(k): n for k, n in sorted(getattr(self, name).items())} for name in _COUNTERS}
        return {**numbers, **counters, "codecs": dict(sorted(self.codecs.items()))}

    @classmethod
    def from_json(cls, content: Any) -> VideoCounts:
        """Read counts that `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if they are something else.
        """
        numbers = {name: content[name] for name in (*_SUMS, "shortest", "longest")}
        counters = {name: Counter({int(k): n for k, n in content[name].items()}) for name in _COUNTERS}
        codecs = Counter(dict(content["codecs"].items()))
        values = [*numbers.values(), *codecs.values(), *(n for counter in counters.values() for n in counter.values())]
        wrong = [value for value in values if not is_count(value)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not a count")
        return cls(**numbers, **counters, codecs=codecs)

    def rows(self) -> list[tuple[str, str]]:
        """Return lines of a table."""
        count = max(self.videos, 1)
        rows = [
            ("frames", f"{self.frames:,}, {self.shortest:,} to {self.longest:,} in a video"),
            ("duration", f"{_time(self.seconds)}, {self.seconds / count:.1f} s per video"),
            ("videos by frames", ", ".join(f"{_bin_name(edge)}: {n:,}" for edge, n in sorted(self.lengths.items()))),
            ("frames per second", _most(self.rates)),
            ("codecs", _most(self.codecs)),
            ("frames per keyframe", f"{self.frames / max(self.keyframes, 1):.1f}"),
        ]
        if self.variable:
            rows.append(("with a variable rate", f"{self.variable:,}"))
        if self.rotated:
            rows.append(("stored turned", f"{self.rotated:,}"))
        return rows


def _is_variable(facts: VideoFacts) -> bool:
    """Return whether the frames of a video have different durations."""
    steps = np.diff(facts.pts.numbers)
    return len(steps) > 1 and float(np.ptp(steps) * facts.time_base) > _ROUNDING


def _most(counter: Counter[Any]) -> str:
    """Return the values with their counts, the rare ones of many together."""
    shown = sorted(key for key, _ in counter.most_common(_SHOWN))
    rest = counter.total() - sum(counter[key] for key in shown)
    return ", ".join([*(f"{key}: {counter[key]:,}" for key in shown), *([f"others: {rest:,}"] if rest else [])])


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _last_of_bin(edge: int) -> float:
    """Return the most frames of a video in a bin."""
    return next((other - 1 for other in _LENGTH_EDGES if other > edge), math.inf)


def _bin_name(edge: int) -> str:
    last = _last_of_bin(edge)
    return f"{edge}+" if last == math.inf else f"{edge}-{last}"
