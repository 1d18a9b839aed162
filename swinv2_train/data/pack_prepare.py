"""One image made ready for a shard: read, checked, and if wanted shrunk or cut, with its label map and objects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.array_image import ARRAY_KINDS
from swinv2_train.data.background import background_color, resize_transparent
from swinv2_train.data.card_label_maps import MEMBER, LabelMapFacts
from swinv2_train.data.card_objects import ObjectFacts
from swinv2_train.data.decode import image_facts, opaque, read_pixels
from swinv2_train.data.encode import encode, png_bytes
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop, resize
from swinv2_train.data.heap import return_large_blocks
from swinv2_train.data.image_header import sniff
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.label_smoothing import is_smooth
from swinv2_train.data.labels import known_labels
from swinv2_train.data.object_cleaning import Cleaning
from swinv2_train.data.object_geometry import resized, tile_of
from swinv2_train.data.object_rules import clean
from swinv2_train.data.objects import MEMBER as OBJECTS
from swinv2_train.data.objects import Objects
from swinv2_train.data.pack_entries import Entry, Source
from swinv2_train.data.pack_writer import Packed, PackOptions
from swinv2_train.data.pixels import Pixels, upright
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.scene import LabelScene, Scene, scene_orientation, stored_labels, turn_of_labels
from swinv2_train.data.unit_values import missing_of, sources
from swinv2_train.data.value_range import numbers_of

_EXTENSIONS = {"jpeg": "jpg", "tiff": "tif"}
"""Extension of the members in a shard, for formats that are not called like their extension."""


class _Closed(Protocol):
    def close(self) -> None: ...


Kept = TypeVar("Kept", bound=_Closed)


class _Last(Generic[Kept]):
    """The scene that was opened last, or the reason why it could not be: tiles of one scene follow each other."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._open: Kept | None = None
        self._error: OSError | BrokenSample | None = None

    def get(self, name: str, opening: Callable[[], Kept]) -> Kept:
        """Return the scene of this name. Raises OSError or BrokenSample."""
        if name != self._name:
            if self._open is not None:
                self._open.close()
            self._name, self._open, self._error = name, None, None
            try:
                self._open = opening()
            except (OSError, BrokenSample) as error:
                self._error = error
        if self._open is None:
            assert self._error is not None
            raise self._error
        return self._open


class _LabelMap(NamedTuple):
    """Class numbers of an image or of a tile."""

    values: np.ndarray
    smooth: bool
    """True if the label map looks as if it was resized with interpolation."""


@dataclass(frozen=True)
class _Truth:
    """Annotations of an image as they are packed."""

    labels: _LabelMap | None = None
    objects: Objects | None = None
    cleaning: Cleaning | None = None
    """Objects that were dropped or changed."""


class Prepare:
    """Runs in the worker processes: read, decode, check, shrink, cut."""

    def __init__(self, source: Source, options: PackOptions) -> None:
        self._source, self._options = replace(source, entries=[], refused=(), notes=()), options
        self._background = background_color(options.background, ())
        self._nodata = numbers_of(options.nodata)
        self._scene: _Last[Scene] = _Last()
        self._labels: _Last[LabelScene] = _Last()
        self._objects_of_scene: tuple[str, Objects, Cleaning] | None = None

    def __call__(self, entry: Entry) -> Packed:
        try:
            return self._whole(entry) if entry.tile is None else self._tile(entry)
        except OSError as error:
            return Packed(entry, broken=error.strerror or str(error))
        except BrokenSample as error:
            return Packed(entry, broken=error.reason)

    def _whole(self, entry: Entry) -> Packed:
        data, texts = self._source.read(entry)
        self._check_kind(sniff(data))
        pixels, image = self._decoded(data)
        labels = self._label_map(entry, data, image)
        objects, cleaning = self._objects(entry, data, tuple(image.shape[1:]))
        limit = self._options.resize
        if limit is not None and max(image.shape[1:]) > limit:
            if pixels.stored or self._source.arrays:
                kind = pixels.stored or "an array"
                raise BrokenSample(f"--resize is for image files of 8 or 16 bits, and it is {kind}")
            before = tuple(image.shape[1:])
            pixels = _shrink(pixels, image, limit, keep_alpha=self._background is not None)
            image = opaque(pixels, self._options.channels, self._background)
            data = encode(pixels.image, self._options.quality, alpha=pixels.alpha)
            after = (image.shape[1], image.shape[2])
            if labels is not None:
                labels = labels._replace(values=_shrunk_labels(labels.values, before, after))
            objects = None if objects is None else resized(objects, after)
        return self._packed(entry, data, texts, pixels, image, _Truth(labels, objects, cleaning))

    def _tile(self, entry: Entry) -> Packed:
        assert entry.tile is not None
        return_large_blocks()
        options = self._options
        scene = self._scene.get(
            entry.path, lambda: Scene(self._source.content(entry), options.max_pixels, options.quality)
        )
        data = scene.tile(entry.tile)
        self._check_kind(sniff(data))
        pixels, image = self._decoded(data)
        labels = self._tile_of_labels(entry)
        objects, cleaning = self._tile_of_objects(entry)
        missing = missing_of(pixels, image.numpy(), self._nodata)
        if missing.all() or (labels is not None and (labels.values == self._ignore).all()):
            return Packed(entry, empty=True, cleaning=cleaning)
        texts = self._source.texts(entry)
        return self._packed(entry, data, texts, pixels, image, _Truth(labels, objects, cleaning))

    def _packed(
        self,
        entry: Entry,
        data: bytes,
        texts: dict[str, bytes],
        pixels: Pixels,
        image: Tensor,
        truth: _Truth,
    ) -> Packed:
        """Return the members of a sample, and its facts for the card."""
        facts = image_facts(data, image, pixels, self._nodata)
        numbers, problem = known_labels(RawSample(entry.key, facts.format, texts))
        members = {_EXTENSIONS.get(facts.format, facts.format): data}
        packed = Packed(entry, members, facts, numbers, label_problem=problem, cleaning=truth.cleaning)
        if truth.labels is not None:
            members[MEMBER] = png_bytes(truth.labels.values)
            counted = LabelMapFacts.of(truth.labels.values, self._ignore)
            smooth = self._source.label_name(entry) if truth.labels.smooth else None
            packed = replace(packed, label_map=counted, smooth=smooth)
        if truth.objects is not None:
            members[OBJECTS] = json.dumps(truth.objects.to_json(), separators=(",", ":")).encode()
            packed = replace(packed, objects=ObjectFacts.of(truth.objects, entry.key))
        members.update(texts)
        return packed

    @property
    def _ignore(self) -> int:
        assert self._options.labels is not None
        return self._options.labels.packed_ignore

    def _label_map(self, entry: Entry, data: bytes, image: Tensor) -> _LabelMap | None:
        """Return the label map of an image as it is packed, upright; None if images have none here."""
        rules = self._options.labels
        if rules is None or entry.label_map is None:
            return None
        with _naming(entry):
            content = self._source.label_content(entry)
            encoded = content.read_bytes() if isinstance(content, Path) else content
            labels = rules.packed(stored_labels(encoded, rules, self._options.max_pixels))
            size = (labels.shape[0], labels.shape[1])
            turned = turn_of_labels(size, (image.shape[1], image.shape[2]), scene_orientation(data))
            values = upright(torch.from_numpy(labels)[None], turned)[0].numpy()
            return _LabelMap(values, is_smooth(labels, rules.packed_ignore))

    def _tile_of_labels(self, entry: Entry) -> _LabelMap | None:
        """Return the part of a label map that belongs to a tile."""
        rules = self._options.labels
        if rules is None or entry.label_map is None:
            return None
        with _naming(entry):
            scene = self._labels.get(entry.path, lambda: self._label_scene(entry, rules))
            return _LabelMap(scene.tile(entry.tile), scene.smooth)

    def _label_scene(self, entry: Entry, rules: LabelRules) -> LabelScene:
        assert entry.scene is not None
        turned = scene_orientation(self._source.content(entry))
        return LabelScene(self._source.label_content(entry), rules, self._options.max_pixels, entry.scene, turned)

    def _objects(
        self, entry: Entry, data: bytes, size: tuple[int, ...]
    ) -> tuple[Objects, Cleaning] | tuple[None, None]:
        """Return the objects of an image and what was changed in them; None if images have none here.

        Args:
            size: height and width of the upright image.
        """
        if self._source.objects is None:
            return None, None
        return clean(self._source.annotations(entry), (size[0], size[1]), scene_orientation(data))

    def _tile_of_objects(self, entry: Entry) -> tuple[Objects, Cleaning | None] | tuple[None, None]:
        """Return the objects that a tile shows; with the first tile of a scene also what was changed in its objects."""
        assert entry.tile is not None
        assert entry.scene is not None
        if self._source.objects is None:
            return None, None
        if self._objects_of_scene is None or self._objects_of_scene[0] != entry.path:
            turned = scene_orientation(self._source.content(entry))
            self._objects_of_scene = entry.path, *clean(self._source.annotations(entry), entry.scene, turned)
        _, objects, cleaning = self._objects_of_scene
        return tile_of(objects, entry.tile), cleaning if entry.tile[:2] == (0, 0) else None

    def _check_kind(self, kind: str | None) -> None:
        """Reject an image among arrays and an array among images, because a shard has samples of one kind only."""
        if kind is not None and (kind in ARRAY_KINDS) != self._source.arrays:
            raise BrokenSample(f"it is {kind}, and the source has {'arrays' if self._source.arrays else 'images'}")

    def _decoded(self, data: bytes) -> tuple[Pixels, Tensor]:
        """Return the image as stored, and as read with the requested channels; types other than unsigned 8 and 16 bit
        integers keep those that they have. Raises BrokenSample."""
        pixels = read_pixels(data, self._options.max_pixels)
        if pixels.stored:
            sources(len(pixels.image), self._options.channels)
            return pixels, pixels.image
        return pixels, opaque(pixels, self._options.channels, self._background)


@contextlib.contextmanager
def _naming(entry: Entry) -> Iterator[None]:
    """Name the label map in every error inside this block, which is then the reason why its image is skipped."""
    try:
        yield
    except OSError as error:
        raise BrokenSample(f"its label map {entry.label_map} cannot be read ({error.strerror or error})") from None
    except BrokenSample as error:
        raise BrokenSample(f"its label map {entry.label_map}: {error.reason}") from None


def _shrunk_labels(labels: np.ndarray, before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
    """Shrink a label map together with its image: each pixel is one of the source."""
    crop = Crop((before[0], before[1]), (0, 0, before[0], before[1]), (after[0], after[1]), (after[0], after[1]))
    return crop.label_map(torch.from_numpy(labels)).numpy()


def _shrink(pixels: Pixels, image: Tensor, limit: int, *, keep_alpha: bool) -> Pixels:
    """Shrink an image to a longer side of `limit`; transparent ones keep their alpha channel.

    Args:
        image: as it is read, without alpha or with it as one of the wanted channels.
        keep_alpha: False: colors of transparent pixels are as good as others, and alpha is dropped.
    """
    height, width = image.shape[1:]
    scale = limit / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if image.shape[0] == pixels.image.shape[0]:
        return Pixels(resize(image, size, "bicubic"), alpha=pixels.alpha)
    if not (pixels.transparent and keep_alpha):
        return Pixels(resize(image, size, "bicubic"))
    return Pixels(resize_transparent(pixels.image, size, premultiplied=pixels.premultiplied), alpha=True)
