"""Shards as a sequence of samples that decode on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.labels import read_labels
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import IMAGE_AND_TEXTS, ShardSet


class LabeledSample(Sample):
    """A sample: `key`, `image` (C, H, W) uint8 or uint16, `json()`, `text()`, `label_map()`, `array()`, and its labels.

    A missing or damaged member raises BrokenSample when it is used.
    """

    @property
    def labels(self) -> tuple[int, ...]:
        """Class numbers; empty without any."""
        try:
            return read_labels(self.raw)
        except BrokenSample:
            return ()


class Shards(Sequence[LabeledSample]):
    """Samples of shards, in their order. Nothing is decoded before it is used.

    Args:
        channels: number of channels of the images; None: as they are stored.
        members: members to read, in addition to the image and the texts.
    """

    def __init__(self, shards: ShardSet, channels: int | None, members: Sequence[str]) -> None:
        self.shard_set = shards
        self.channels = channels
        self.members = tuple(dict.fromkeys((*IMAGE_AND_TEXTS, *members)))

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, if `swinv2-data pack --classes` recorded them."""
        names = self.shard_set.card.class_names if self.shard_set.card else None
        return list(names) if names else None

    def __len__(self) -> int:
        return self.shard_set.num_samples

    @overload
    def __getitem__(self, index: int) -> LabeledSample: ...

    @overload
    def __getitem__(self, index: slice) -> list[LabeledSample]: ...

    def __getitem__(self, index: int | slice) -> LabeledSample | list[LabeledSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        raw = self.shard_set.read(position, self.members)  # IndexError ends an iteration
        return LabeledSample(raw, self.channels)

    def __iter__(self) -> Iterator[LabeledSample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self):,} samples in {len(self.shard_set.shards)} shards>"


def open_shards(
    spec: str | Path | Sequence[str | Path],
    *,
    channels: int | None = None,
    members: Sequence[str] = (),
    cache_dir: str | Path = "~/.cache/swinv2_train/shards",
    cache_gib: float = 50.0,
) -> Shards:
    """Open WebDataset shards as a sequence of samples.

    Args:
        spec: a path, a directory, a pattern such as `shards/train-*.tar`, a URL, or a list of these.
        channels, members: see `Shards`; a member is named by its extension, such as seg.png.
        cache_dir, cache_gib: cache of remote shards.

    Raises:
        DataError: if a shard is missing or is not a tar, or no shard has a sample.
    """
    places = str(spec) if isinstance(spec, (str, Path)) else [str(item) for item in spec]
    return Shards(ShardSet.open(places, cache_dir, cache_gib), channels, members)
