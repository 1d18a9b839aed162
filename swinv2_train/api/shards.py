"""Shards as a sequence of samples that decode on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from swinv2_train.config.data import DataConfig
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.values import check_scale, scale_pairs
from swinv2_train.data.card_label_maps import MEMBER
from swinv2_train.data.configured import open_labeled
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample, OtherSamples
from swinv2_train.data.label_counts import with_classes
from swinv2_train.data.label_source import LabelSource
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import TEXT_EXTENSIONS, VIDEO_FACTS
from swinv2_train.data.shards import ShardSet
from swinv2_train.text import counted


class LabeledSample(Sample):
    """A sample: `key`, `image` (C, H, W) or `video`, `json()`, `text()`, `label_map()`, `array()`, and its labels.

    The image is uint8, uint16, or with `scale` float32 in [0, 1].

    A missing or damaged member raises BrokenSample when it is used.
    """

    def __init__(
        self, raw: RawSample, channels: int | None, decoding: DecodeOptions | None, source: LabelSource
    ) -> None:
        super().__init__(raw, channels, decoding)
        self._source = source

    @property
    def labels(self) -> tuple[int, ...]:
        """Class numbers; empty without any."""
        try:
            return self._source.read(self.raw)
        except BrokenSample:
            return ()


class Shards(Sequence[LabeledSample]):
    """Samples of shards, in their order. Nothing is decoded before it is used.

    Args:
        channels: number of channels of the images; None: as they are stored.
        members: members to read, in addition to the image or video and the texts.
        decoding: how images are decoded.
        label: where the labels are, as `data.label`.
    """

    def __init__(
        self,
        shards: ShardSet,
        channels: int | None,
        members: Sequence[str],
        decoding: DecodeOptions | None = None,
        label: str | None = None,
    ) -> None:
        self.shard_set = shards
        self.decoding = decoding
        self.channels = channels
        self._source = LabelSource.of(label, self.class_names)
        first = (shards.scope.main, *TEXT_EXTENSIONS)
        self.members = tuple(dict.fromkeys((*first, *members, *self._source.members)))

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, if `swinv2-data pack --classes` recorded them, or the labels are names."""
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
        return LabeledSample(raw, self.channels, self.decoding, self._source)

    def __iter__(self) -> Iterator[LabeledSample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'sample', ',')} in {counted(len(self.shard_set.shards), 'shard')}>"


def open_shards(
    spec: str | Path | Sequence[str | Path],
    *,
    channels: int | None = None,
    members: Sequence[str] = (),
    label: str | None = None,
    label_map: str | None = None,
    scale: Sequence[float] | Sequence[Sequence[float]] | None = None,
    cache_dir: str | Path = "~/.cache/swinv2_train/shards",
    cache_gib: float = 50.0,
) -> Shards:
    """Open WebDataset shards as a sequence of samples with an image each, or without images with a video.

    Args:
        spec: a path, a directory, a pattern such as `shards/train-*.tar`, a URL, or a list of these.
        channels, members: see `Shards`; a member is named by its extension, such as seg.png.
        label: where the labels are, as `data.label`: a member such as label.cls, or a field of the member json. All of
            them are read once and counted, and the result is kept.
        label_map: member with the label map, as `task.label`, which is read and never is the image. Shards that
            `swinv2-data pack` wrote name it themselves.
        scale: range of the stored values that becomes 0 to 1, as `data.scale`: [low, high], or one per channel. Images
            of other types than uint8 and uint16 need it. Pixels without data become 0.
        cache_dir, cache_gib: cache of remote shards.

    Raises:
        DataError: if a shard is missing or is not a tar, or no shard has a sample, or none has a label.
        ConfigError: if `scale` is not made of such numbers.
    """
    places = str(spec) if isinstance(spec, (str, Path)) else [str(item) for item in spec]
    decoding = None
    if scale is not None:
        if isinstance(scale, str):
            raise ConfigError("scale", scale, "must be numbers: [low, high], or a list of such pairs")
        check_scale(list(scale), channels or len(scale_pairs(list(scale))))
        decoding = DecodeOptions.of(DataConfig(scale=list(scale)), [0.0])
    try:
        opened = open_labeled(places, cache_dir, cache_gib, label_member=label_map)
    except OtherSamples as other:
        opened = open_labeled(places, cache_dir, cache_gib, label_member=label_map, main=other.main)
        members = (*members, VIDEO_FACTS)
    if label_map == MEMBER and opened.card is not None:
        opened.card = opened.card.of_label_maps() or opened.card
    found = with_classes(opened, label)
    read = members if label_map is None else (*members, label_map)
    return Shards(found, channels, read, decoding, label)
