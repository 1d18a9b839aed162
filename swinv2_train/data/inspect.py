"""Check every sample of a set of shards, and count its card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swinv2_train.data.background import background_color
from swinv2_train.data.card import Card, ImageFacts
from swinv2_train.data.decode import MAX_PIXELS
from swinv2_train.data.inspect_images import Checked, CheckImage, LabelMapCheck
from swinv2_train.data.inspect_videos import CheckVideo
from swinv2_train.data.parallel import CHUNK, ParallelMap
from swinv2_train.data.samples import VIDEO, LeftOut
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.sources import manifest_place
from swinv2_train.data.value_range import numbers_of
from swinv2_train.text import counted


@dataclass
class Inspection:
    """Card of the samples that decode, and everything that is not read or cannot be used."""

    card: Card = field(default_factory=Card)
    broken: list[tuple[str, str]] = field(default_factory=list)
    """("shard/key", reason)."""
    truncated: list[tuple[str, str]] = field(default_factory=list)
    """(shard, why) of shards that end early."""
    empty: list[str] = field(default_factory=list)
    """Messages for shards without samples."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """Members of the shards that are not read."""
    choices: list[str] = field(default_factory=list)
    """A line for each kind of sample with several images: the one that is read."""
    label_problems: list[tuple[str, str]] = field(default_factory=list)
    """("shard/key", reason) of labels that cannot be used."""
    labeled: int = 0
    """Samples with a label that can be used."""
    unlabeled: int = 0
    """Samples without a label."""
    first_unlabeled: str = ""
    copies: int = 0
    """Samples whose image is, byte for byte, that of an earlier one."""
    across: list[tuple[str, str]] = field(default_factory=list)
    """("shard/key", "shard/key") of equal images in different splits, such as train and eval."""
    smooth: list[str] = field(default_factory=list)
    """Label maps that look as if they were resized with interpolation."""
    label_maps: LabelMapCheck | None = None
    """Expected content of the label maps; None without any."""

    @property
    def complete(self) -> bool:
        """True if every image and label is read and can be used."""
        lost = self.broken or self.truncated or self.empty or self.left_out.lost or self.label_problems
        return not (lost or self.across or (self.labeled and self.unlabeled))

    def labels_row(self) -> str:
        """Return how many samples have labels, and the range of their numbers."""
        if self.card.objects is not None:
            return f"{self.labeled:,} of {self.card.num_samples:,} samples have objects, or state that they have none"
        if self.card.label_maps is not None:
            return f"{self.labeled:,} of {self.card.num_samples:,} samples have a label map"
        if not self.card.class_counts:
            return counted(self.labeled, "sample", ",") if self.labeled else "none"
        numbers = self.card.class_counts
        return f"{self.labeled:,} of {self.card.num_samples:,} samples, numbers {min(numbers)} to {max(numbers)}"


def inspect(
    shards: ShardSet,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    background: Any = "white",
    max_pixels: int = MAX_PIXELS,
    nodata: Any = None,
    labels: str | None = None,
    ignore: int | None = None,
) -> Inspection:
    """Decode every sample, of images with their label maps and objects if the packer wrote them.

    Args:
        labels: member with the label map, for shards of other programs.
        ignore: value of their pixels without a class; see `LabelMapCheck.of`.
        progress: gets the samples done and their number.
        background, max_pixels, nodata: as in the section `data` of a config.
    """
    missing = numbers_of(nodata)
    found = Inspection(Card(background=background, nodata=None if missing is None else list(missing)))
    digests = np.zeros(shards.num_samples, np.uint64)
    check: Callable[[int], Checked]
    if shards.scope.main == VIDEO:
        check = CheckVideo(shards, max_pixels)
    else:
        found.label_maps = label_maps = LabelMapCheck.of(shards, labels, ignore)
        shards.label_member = label_maps.member if label_maps is not None else None
        if shards.card is not None and (label_maps is not None or shards.card.objects is not None):
            found.card.class_names = shards.card.class_names
        check = CheckImage(shards, background_color(background, ()), max_pixels, missing, label_maps)
    checked_samples = ParallelMap(check, workers, name=shards.name, chunk=1 if shards.scope.main == VIDEO else CHUNK)
    try:
        for index, checked in enumerate(checked_samples(range(shards.num_samples))):
            if checked.facts is not None:
                _count(found, shards, index, checked, checked.facts)
                digests[index] = checked.digest
            else:
                found.broken.append((shards.name(index), checked.broken or ""))
            progress(index + 1, shards.num_samples)
    finally:
        checked_samples.close()
    if found.card.objects is not None and shards.card is not None and shards.card.objects is not None:
        found.card.objects.categories = shards.card.objects.categories
        if found.card.label_maps is not None:
            found.card.label_maps.names = shards.card.label_map_names
    found.card.broken = len(found.broken)
    found.truncated = [(shard.url, shard.truncated) for shard in shards.shards if shard.truncated]
    found.choices = shards.choices()
    found.empty = [shard.empty or shard.url for shard in shards.empty]
    for number, shard in enumerate(shards.shards):
        found.left_out.merge(shards.left_out(number), shard.name)
    _find_copies(found, shards, digests)
    return found


def _find_copies(found: Inspection, shards: ShardSet, digests: np.ndarray) -> None:
    """Count the images that occur twice, and name those that are in two splits.

    Args:
        digests: (samples,) uint64 hashes of the images; 0 for broken ones.
    """
    order = np.argsort(digests, kind="stable")
    order = order[np.searchsorted(digests[order], 1) :]
    same = np.flatnonzero(digests[order[1:]] == digests[order[:-1]])
    found.copies = len(same)
    for place in same:
        pair = [int(order[place]), int(order[place + 1])]
        if len({_split_of(shards, index) for index in pair}) > 1:
            found.across.append((shards.name(pair[0]), shards.name(pair[1])))


def _split_of(shards: ShardSet, index: int) -> str:
    """Return the shards that were packed together: those of one manifest, or of one folder."""
    url = shards.shards[shards.locate(index)[0]].url
    return manifest_place(url) or url.rpartition("/")[0]


def _count(found: Inspection, shards: ShardSet, index: int, checked: Checked, facts: ImageFacts) -> None:
    found.card.add_image(facts, checked.num_bytes, checked.labels, checked.label_map, checked.objects, checked.video)
    if checked.smooth and found.label_maps is not None:
        found.smooth.append(f"{shards.name(index)}.{found.label_maps.member}")
    if checked.label_problem is not None:
        found.label_problems.append((shards.name(index), checked.label_problem))
    elif checked.labels is not None or checked.label_map is not None or checked.objects is not None:
        found.labeled += 1
    else:
        found.unlabeled += 1
        found.first_unlabeled = found.first_unlabeled or shards.name(index)
