"""Dataset card: the contents of a set of images or videos, counted while it is packed or inspected.

Cards add up: the card of a data set is the sum of the cards of its shards.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from swinv2_train.class_lists import lists_differ
from swinv2_train.data.card_label_maps import LabelMapFacts
from swinv2_train.data.card_objects import ObjectFacts
from swinv2_train.data.card_videos import VideoCounts
from swinv2_train.data.samples import IMAGE, VIDEO
from swinv2_train.data.value_stats import ValueStats
from swinv2_train.reading import is_count

Part = TypeVar("Part")
_VIDEOS = "videos"
"""Entry of a card about videos."""
_SIDE_EDGES = (64, 128, 192, 224, 256, 384, 512, 768, 1024, 1536, 2048)


@dataclass(frozen=True)
class ImageFacts:
    """Contribution of one image, or of some frames of a video, to a card."""

    format: str
    """Format of the bytes, regardless of the name, as `image_header.sniff` returns it; of a video, its container."""
    bits: int
    height: int
    width: int
    means: tuple[float, ...] = ()
    """Per-channel mean in [0, 1]; empty if the values are not intensities of 8 or 16 bits."""
    squares: tuple[float, ...] = ()
    """Per-channel mean of the square."""
    alpha: bool = False
    """True if the image has an alpha channel."""
    transparent: bool = False
    """True if that channel is not opaque everywhere."""
    flat: bool = False
    """True if all pixels have the same color, as they are read."""
    values: ValueStats | None = None
    """Statistics of the stored values; None for 8 bits."""

    @property
    def channels(self) -> int:
        """Number of channels, an alpha channel not counted."""
        return len(self.means) or len(self.values.channels if self.values else ())


@dataclass
class Moments:
    """Sums over images of their per-channel means: every image weighs the same, as in training."""

    images: int
    means: list[float]
    squares: list[float]

    def add(self, other: Moments) -> None:
        self.images += other.images
        self.means = [a + b for a, b in zip(self.means, other.means, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other.squares, strict=True)]


@dataclass
class Card:
    """Counts and sums; `to_json` adds the mean and standard deviation for a reader."""

    num_samples: int = 0
    bytes: int = 0
    """Encoded images or videos only."""
    broken: int = 0
    """Files or samples that could not be decoded and are not part of the counts."""
    split: str | None = None
    formats: Counter[str] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    """Images per number of channels, an alpha channel not counted."""
    bits: Counter[int] = field(default_factory=Counter)
    short_sides: Counter[int] = field(default_factory=Counter)
    """Images per lower edge of the bin that their shorter side, in pixels, falls into."""
    class_names: list[str] | None = None
    class_counts: Counter[int] = field(default_factory=Counter)
    """Images per class; an image with several classes counts for each of them."""
    moments: dict[int, Moments] = field(default_factory=dict)
    alpha: int = 0
    """Images with an alpha channel."""
    alpha_counted: bool = True
    """False for a card of an earlier version, which did not count alpha channels; not stored."""
    transparent: int = 0
    """Images with pixels that are not opaque."""
    flat: int = 0
    """Images of one color."""
    background: Any = None
    """Color behind transparent pixels that `moments` and `flat` were counted with; None: unknown, alpha was dropped."""
    values: dict[int, ValueStats] = field(default_factory=dict)
    """Statistics of the stored values, by number of channels; without images of 8 bits."""
    nodata: list[float] | None = None
    """Stored values that were counted as missing, as `data.nodata`; None: those that the files name."""
    class_lists_differ: bool = False
    """True if merged cards assign the same number to different classes; not stored."""
    label_maps: LabelMapFacts | None = None
    """Counts over the label maps; None if the images have none. `class_names` are their classes, unless the images have
    objects, too; see `label_map_names`."""
    objects: ObjectFacts | None = None
    """Counts over the objects, whose categories `class_names` are; None if the images have none."""
    videos: VideoCounts | None = None
    """Counts over the videos; None if the samples are images."""

    def add_image(
        self,
        facts: ImageFacts,
        num_bytes: int,
        labels: Sequence[int] | None,
        label_map: LabelMapFacts | None = None,
        objects: ObjectFacts | None = None,
        video: VideoCounts | None = None,
    ) -> None:
        self.num_samples += 1
        self.bytes += num_bytes
        self.formats[facts.format] += 1
        self.bits[facts.bits] += 1
        self.channels[facts.channels] += 1
        side = min(facts.height, facts.width)
        self.short_sides[max((edge for edge in _SIDE_EDGES if edge <= side), default=0)] += 1
        self.class_counts.update(labels or ())
        self.alpha += facts.alpha
        self.transparent += facts.transparent
        self.flat += facts.flat
        if facts.means:
            self._add_moments(len(facts.means), Moments(1, list(facts.means), list(facts.squares)))
        if facts.values is not None:
            self.values.setdefault(facts.channels, ValueStats()).add(facts.values)
        self._add_parts(label_map, objects, video)

    def add(self, other: Card) -> None:
        """Count another card in. Raises DataError if their label maps cannot be read together."""
        self.num_samples += other.num_samples
        self.bytes += other.bytes
        self.broken += other.broken
        self.alpha += other.alpha
        self.alpha_counted &= other.alpha_counted
        self.transparent += other.transparent
        self.flat += other.flat
        self.background = self.background if self.background is not None else other.background
        for name in ("formats", "channels", "bits", "short_sides", "class_counts"):
            getattr(self, name).update(getattr(other, name))
        for channels, moments in other.moments.items():
            self._add_moments(channels, moments)
        for channels, stats in other.values.items():
            self.values.setdefault(channels, ValueStats()).add(stats)
        self._add_parts(other.label_maps, other.objects, other.videos)
        self.nodata = self.nodata if self.nodata is not None else other.nodata
        self.split = self.split or other.split
        self.class_lists_differ |= other.class_lists_differ
        self.class_lists_differ |= lists_differ(self.class_names, other.class_names)
        self.class_names = self.class_names or other.class_names

    @classmethod
    def merged(cls, cards: Iterable[Card]) -> Card:
        total = cls()
        for card in cards:
            total.add(card)
        return total

    @property
    def num_classes(self) -> int | None:
        """Number of classes: that of the names, or implied by the highest number; None if there are no labels."""
        if self.class_names:
            return len(self.class_names)
        if self.objects is not None:
            return self.objects.num_classes
        if self.label_maps is not None:
            return self.label_maps.num_classes
        return max(self.class_counts) + 1 if self.class_counts else None

    @property
    def label_map_names(self) -> list[str] | None:
        """Names of the classes of the label maps; None without label maps or names."""
        if self.label_maps is None:
            return None
        return self.class_names if self.objects is None else self.label_maps.names

    def of_images(self) -> Card | None:
        """Return the card with only the classes of entire images; None if they have none."""
        named = self.label_maps is None and self.objects is None
        if not (self.class_counts or (named and self.class_names)):
            return None
        return self if named else replace(self, class_names=None, label_maps=None, objects=None)

    def of_label_maps(self) -> Card | None:
        """Return the card with only the classes of the label maps; None without label maps."""
        if self.label_maps is None:
            return None
        if self.objects is None:
            return self
        names, differ = self.label_maps.names, self.label_maps.names_differ
        return replace(self, class_names=names, class_lists_differ=differ, objects=None)

    def of_objects(self) -> Card | None:
        """Return the card with only the categories of the objects; None without objects."""
        return None if self.objects is None else replace(self, class_counts=Counter(), label_maps=None)

    def statistics(self, channels: int) -> tuple[list[float], list[float]] | None:
        """Per-channel mean and standard deviation in [0, 1] of images read with `channels` channels.

        Gray images count for three channels the way they are read: repeated. None if the card does not contain them.
        """
        total = Moments(0, [0.0] * channels, [0.0] * channels)
        for stored, moments in self.moments.items():
            if stored == channels:
                total.add(moments)
            elif (stored, channels) == (1, 3):
                total.add(Moments(moments.images, moments.means * 3, moments.squares * 3))
        if total.images == 0:
            return None
        means = [value / total.images for value in total.means]
        squares = [value / total.images for value in total.squares]
        return means, [math.sqrt(max(b - a * a, 0.0)) for a, b in zip(means, squares, strict=True)]

    def values_of(self, channels: int) -> ValueStats | None:
        """Return the statistics of the stored values of images read with `channels` channels; None if there are none.

        Gray images count for three channels the way they are read: repeated.
        """
        total = ValueStats()
        for stored, stats in self.values.items():
            if stored == channels:
                total.add(stats)
            elif (stored, channels) == (1, 3):
                total.add(stats.repeated(channels))
        return total if total.images else None

    def partial_values(self, channels: int) -> str:
        """Return a line if `values_of` describes only some of the images that are read with `channels` channels."""
        stats = self.values_of(channels)
        total = self.channels[channels] + (self.channels[1] if channels == 3 else 0)
        if stats is None or stats.images >= total:
            return ""
        return (
            f"the dataset card has the values of only {stats.images:,} of {total:,} {channels}-channel images, because "
            "the others have 8 bits or inverted samples"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` restores the same card."""
        values = {str(c): stats.to_json() for c, stats in sorted(self.values.items())}
        label_maps = {} if self.label_maps is None else {"label_maps": self.label_maps.to_json()}
        content = {
            "num_samples": self.num_samples,
            "bytes": self.bytes,
            "broken": self.broken,
            "split": self.split,
            "formats": _plain(self.formats),
            "channels": _plain(self.channels),
            "bits": _plain(self.bits),
            "short_sides": _plain(self.short_sides),
            "alpha": {"images": self.alpha, "transparent": self.transparent, "background": self.background},
            "flat": self.flat,
            "classes": {"names": self.class_names, "counts": _plain(self.class_counts)},
            "moments": {str(c): vars(m) for c, m in sorted(self.moments.items())},
            "statistics": {
                str(c): dict(zip(("mean", "std"), self.statistics(c) or (), strict=False)) for c in sorted(self.moments)
            },
        }
        objects = {} if self.objects is None else {"objects": self.objects.to_json()}
        videos = {} if self.videos is None else {_VIDEOS: self.videos.to_json()}
        return content | ({"values": values, "nodata": self.nodata} if values else {}) | label_maps | objects | videos

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Card:
        """Read a card that `to_json` wrote; entries that another version did not write are empty.

        Raises:
            ValueError: naming an entry that cannot be.
        """
        classes, alpha = _entry(content, "classes", dict, {}), _entry(content, "alpha", dict, {})
        names = classes.get("names")
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("classes.names is not a list of names")
        return cls(
            num_samples=_count(content.get("num_samples", 0), "num_samples"),
            bytes=_count(content.get("bytes", 0), "bytes"),
            broken=_count(content.get("broken", 0), "broken"),
            split=_entry(content, "split", str, None),
            formats=Counter({name: _count(n, "formats") for name, n in _entry(content, "formats", dict, {}).items()}),
            channels=_int_counter(content, "channels"),
            bits=_int_counter(content, "bits"),
            short_sides=_int_counter(content, "short_sides"),
            class_names=names,
            class_counts=_int_counter(classes, "counts"),
            moments={_key(c, "moments"): _moments(c, m) for c, m in _entry(content, "moments", dict, {}).items()},
            alpha=_count(alpha.get("images", 0), "alpha.images"),
            alpha_counted="images" in alpha or not content.get("channels"),
            transparent=_count(alpha.get("transparent", 0), "alpha.transparent"),
            flat=_count(content.get("flat", 0), "flat"),
            background=_entry(alpha, "background", (str, list), None),
            values={_key(c, "values"): _values(c, v) for c, v in _entry(content, "values", dict, {}).items()},
            nodata=_entry(content, "nodata", list, None),
            label_maps=_part(content, "label_maps", LabelMapFacts.from_json),
            objects=_part(content, "objects", ObjectFacts.from_json),
            videos=_part(content, _VIDEOS, VideoCounts.from_json),
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return the card as lines of a table: name and value."""
        rows = [
            ("samples", f"{self.num_samples:,}"),
            ("broken, left out", f"{self.broken:,}"),
            (f"{IMAGE if self.videos is None else VIDEO} bytes", f"{self.bytes / 2**20:,.1f} MiB"),
            ("formats", _listed(self.formats)),
            ("channels", _listed(self.channels)),
            ("bits per channel", _listed(self.bits)),
            ("shorter side", ", ".join(f"{_bin_name(edge)}: {n:,}" for edge, n in sorted(self.short_sides.items()))),
        ]
        if self.videos is not None:
            rows += self.videos.rows()
        if self.alpha:
            behind = f", counted on {self.background}" if self.transparent and self.background is not None else ""
            rows.append(("with alpha", f"{self.alpha:,}, {self.transparent:,} of them transparent{behind}"))
        if self.flat:
            rows.append(("of one color", f"{self.flat:,}"))
        for channels in sorted(self.moments):
            means, stds = self.statistics(channels) or ([], [])
            rows.append((f"mean, {channels} channels", _rounded(means)))
            rows.append((f"std, {channels} channels", _rounded(stds)))
        for channels in sorted(self.values):
            rows += self.values[channels].rows()
        if self.class_counts:
            counts = self.class_counts.values()
            text = f"{len(counts):,}, with {min(counts):,} to {max(counts):,} samples each"
            rows.append(("classes", text))
            if sum(counts) > self.num_samples:
                rows.append(("classes per sample", f"{sum(counts) / self.num_samples:.2f}"))
        if self.label_maps is not None:
            rows += self.label_maps.rows(self.label_map_names)
        if self.objects is not None:
            rows += self.objects.rows(self.class_names)
        if self.split:
            rows.insert(0, ("split", self.split))
        return rows

    def _add_parts(
        self, label_maps: LabelMapFacts | None, objects: ObjectFacts | None, videos: VideoCounts | None
    ) -> None:
        for name, other in (("label_maps", label_maps), ("objects", objects), (_VIDEOS, videos)):
            own = getattr(self, name)
            if own is None:
                setattr(self, name, None if other is None else other.copy())
            elif other is not None:
                own.add(other)

    def _add_moments(self, channels: int, moments: Moments) -> None:
        if channels in self.moments:
            self.moments[channels].add(moments)
        else:
            self.moments[channels] = Moments(moments.images, list(moments.means), list(moments.squares))


def main_of(content: Mapping[str, Any]) -> str:
    """Return the kind of main member of the samples of a card, from its JSON: image or video."""
    return VIDEO if content.get(_VIDEOS) else IMAGE


def _plain(counter: Counter[Any]) -> dict[str, int]:
    return {str(key): counter[key] for key in sorted(counter)}


def _entry(content: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = content.get(name)
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} is {reprlib.repr(value)}")
    return default if value is None else value


def _count(value: Any, name: str) -> int:
    if not is_count(value):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a count")
    return value


def _key(text: str, name: str) -> int:
    if not re.fullmatch(r"-?\d{1,15}", text):  # a list of images may have -1 as a class
        raise ValueError(f"{name} has the entry {text[:40]!r}")
    return int(text)


def _int_counter(content: dict[str, Any], name: str) -> Counter[int]:
    return Counter({_key(key, name): _count(n, name) for key, n in _entry(content, name, dict, {}).items()})


def _moments(channels: str, content: Any) -> Moments:
    try:
        moments = Moments(**content)
        for values in (moments.means, moments.squares):
            if len(values) != int(channels) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                raise ValueError
        _count(moments.images, "images")
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"moments of {channels} channels cannot be read") from error
    return moments


def _values(channels: str, content: Any) -> ValueStats:
    try:
        stats = ValueStats.from_json(content)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"the values of {channels} channels cannot be read ({error})") from error
    if len(stats.channels) != int(channels):
        raise ValueError(f"the values of {channels} channels have {len(stats.channels)}")
    return stats


def _part(content: dict[str, Any], name: str, read: Callable[[Any], Part]) -> Part | None:
    """Return the part of a card that another module reads; None if the card does not have it."""
    found = _entry(content, name, dict, None)
    try:
        return None if found is None else read(found)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{name} cannot be read ({error})") from error


def _listed(counter: Counter[Any]) -> str:
    return ", ".join(f"{key}: {n:,}" for key, n in sorted(counter.items()))


def _rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _bin_name(edge: int) -> str:
    later = [other for other in _SIDE_EDGES if other > edge]
    return f"{edge}-{later[0] - 1}" if later else f"{edge}+"
