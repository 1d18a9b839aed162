"""Checks of single samples with an image, its label map, and its objects."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace

import numpy as np

from swinv2_train.data.background import Background
from swinv2_train.data.card import ImageFacts
from swinv2_train.data.card_label_maps import MEMBER, LabelMapFacts
from swinv2_train.data.card_objects import ObjectFacts
from swinv2_train.data.card_videos import VideoCounts
from swinv2_train.data.decode import image_facts, opaque, read_pixels
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.label_image import decode_label_map
from swinv2_train.data.label_smoothing import is_smooth
from swinv2_train.data.labels import known_labels
from swinv2_train.data.object_masks import rle_of
from swinv2_train.data.objects import MEMBER as OBJECTS
from swinv2_train.data.objects import Objects
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.shards import IMAGE_AND_TEXTS, ShardSet
from swinv2_train.data.value_range import Nodata
from swinv2_train.reading import UnreadableError, parse_json

_SHOWN = 3
_TRIED = 100
_ROUNDING = 0.001
"""Pixels that a packed box may leave its image by."""


@dataclass(frozen=True)
class Checked:
    """Result of reading and decoding one sample."""

    facts: ImageFacts | None = None
    num_bytes: int = 0
    labels: tuple[int, ...] | None = None
    label_problem: str | None = None
    broken: str | None = None
    digest: int = 0
    label_map: LabelMapFacts | None = None
    objects: ObjectFacts | None = None
    video: VideoCounts | None = None
    smooth: bool = False
    """True if the label map looks as if it was resized with interpolation."""


@dataclass(frozen=True)
class LabelMapCheck:
    """Expected content of the label maps of a set."""

    member: str
    ignore: int = 255
    """Value of pixels without a class."""
    num_classes: int | None = None
    """Numbers of classes are below; None: unknown."""
    assumed: str = ""
    """Reason for `ignore` if neither the card nor the user names it."""

    @classmethod
    def of(cls, shards: ShardSet, member: str | None, ignore: int | None) -> LabelMapCheck | None:
        """Return the check for the shards of the packer, or for a member of others; None if they have no label maps.

        Args:
            member: as the user names it; None: that of the packer.
            ignore: value of pixels without a class, as the user names it; None: that of the card, or else the highest
                one of the depth of the first label map.

        Raises:
            DataError: if the packer wrote another member or value, or there are no label maps for the value.
        """
        card = shards.card
        if card is not None and card.label_maps is not None:
            known = card.label_maps.ignore
            if member not in (None, MEMBER):
                raise DataError(f"--labels {member}: the label maps of these shards are their members {MEMBER}")
            if ignore not in (None, known):
                raise DataError(f"--ignore {ignore}: in the label maps of these shards {known} means no class")
            names = card.label_map_names
            # Without names, the number of classes is that of the highest value, as it was counted.
            return cls(MEMBER, known, len(names) if names else card.num_classes if card.objects is None else None)
        if member is None:
            if ignore is not None:
                raise DataError(f"--ignore {ignore} is for label maps: add --labels MEMBER, such as --labels mask.png")
            return None
        if ignore is not None:
            return cls(member, ignore)
        bits = _bits(shards, member)
        return cls(member, 2**bits - 1, assumed=f"assumed for label maps of {bits} bits; --ignore VALUE sets another")

    def facts(self, raw: RawSample, size: tuple[int, int], max_pixels: int) -> tuple[LabelMapFacts, bool]:
        """Return what the label map of a sample adds to the card, and whether it looks interpolated.

        Args:
            size: height and width of the image.

        Raises:
            BrokenSample: if it is missing or damaged, or has another size than the image or values that are not
                classes.
        """
        if self.member not in raw.members:
            raise BrokenSample(f"it has no label map {self.member}")
        try:
            labels = decode_label_map(raw.members[self.member], max_pixels).numpy()
        except BrokenSample as error:
            raise BrokenSample(f"{self.member}: {error.reason}") from None
        if labels.shape != size:
            raise BrokenSample(
                f"{self.member} is {labels.shape[1]} x {labels.shape[0]}, and the image is {size[1]} x {size[0]}"
            )
        values, counts = np.unique(labels, return_counts=True)
        wrong = (values != self.ignore) & (values.astype(np.int64) >= (self.num_classes or int(values.max()) + 1))
        if wrong.any():
            listed = ", ".join(
                f"{value} ({count:,} pixels)"
                for value, count in zip(values[wrong][:_SHOWN], counts[wrong][:_SHOWN], strict=True)
            )
            raise BrokenSample(f"{self.member} has values that are not classes: {listed}")
        return LabelMapFacts.of(labels, self.ignore), is_smooth(labels, self.ignore)


def _bits(shards: ShardSet, member: str) -> int:
    """Return the depth of the first label map that can be read, 8 or 16; 8 if none of the first samples has one."""
    shards.label_member = member
    for index in range(min(_TRIED, shards.num_samples)):
        with contextlib.suppress(BrokenSample):
            return 8 * decode_label_map(shards.read(index, (member,)).member(member)).element_size()
    return 8


def checked_objects(raw: RawSample, size: tuple[int, int], num_categories: int | None) -> ObjectFacts:
    """Return what the objects of a sample add to the card.

    Args:
        size: height and width of the image.
        num_categories: numbers of categories are below; None: unknown.

    Raises:
        BrokenSample: if they are missing or damaged, or have boxes or masks that do not fit the image or numbers that
            are not categories.
    """
    data = raw.member(OBJECTS)
    try:
        found = Objects.from_json(parse_json(data))
    except UnreadableError as error:
        raise BrokenSample(f"{OBJECTS}: {error}") from None
    except BrokenSample as error:
        raise BrokenSample(f"{OBJECTS}: {error.reason}") from None
    if found.size != size:
        raise BrokenSample(
            f"{OBJECTS} is for {found.size[1]} x {found.size[0]} pixels, and the image has {size[1]} x {size[0]}"
        )
    limit = np.array([size[1], size[0]] * 2) + _ROUNDING
    for number, (box, category, mask) in enumerate(zip(found.boxes, found.categories, found.masks, strict=True)):
        where = f"{OBJECTS}: object {number}"
        if num_categories is not None and category >= num_categories:
            raise BrokenSample(f"{where}: its category {category} is not one of the {num_categories} on the card")
        if (box < -_ROUNDING).any() or (box > limit).any():
            raise BrokenSample(f"{where}: its box {box.tolist()} leaves the image of {size[1]} x {size[0]} pixels")
        if isinstance(mask, dict):
            try:
                rle_of(mask, size)
            except BrokenSample as error:
                raise BrokenSample(f"{where}: {error.reason}") from None
    return ObjectFacts.of(found, raw.key)


class CheckImage:
    """Runs in the worker processes: read and decode one sample."""

    def __init__(
        self,
        shards: ShardSet,
        background: Background,
        max_pixels: int,
        nodata: Nodata,
        label_maps: LabelMapCheck | None,
    ) -> None:
        self._shards, self._background, self._max_pixels, self._nodata = shards, background, max_pixels, nodata
        self._label_maps = label_maps
        self._members = IMAGE_AND_TEXTS if label_maps is None else (*IMAGE_AND_TEXTS, label_maps.member)
        self._num_categories: int | None = None
        self._objects = shards.card is not None and shards.card.objects is not None
        if self._objects:
            assert shards.card is not None
            self._num_categories = shards.card.num_classes
            self._members = (*self._members, OBJECTS)

    def __call__(self, index: int) -> Checked:
        try:
            raw = self._shards.read(index, self._members)
            pixels = read_pixels(raw.data, self._max_pixels)
            facts = image_facts(raw.data, opaque(pixels, None, self._background), pixels, self._nodata)
            digest = hashlib.blake2b(raw.data, digest_size=8).digest()
            labels, problem = known_labels(raw)
            label_map, smooth, objects, size = None, False, None, (facts.height, facts.width)
            try:
                if self._label_maps is not None:
                    label_map, smooth = self._label_maps.facts(raw, size, self._max_pixels)
                if self._objects:
                    objects = checked_objects(raw, size, self._num_categories)
            except BrokenSample as error:
                problem = error.reason
            found = Checked(facts, len(raw.data), labels, problem, digest=int.from_bytes(digest))
            return replace(found, label_map=label_map, smooth=smooth, objects=objects)
        except BrokenSample as error:
            return Checked(broken=error.reason)
