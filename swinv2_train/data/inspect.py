"""Check every sample of a set of shards, count its card, draw a contact sheet."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.background import Background, background_color
from swinv2_train.data.card import Card, ImageFacts
from swinv2_train.data.decode import MAX_PIXELS, DecodeOptions, image_facts, opaque, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import resize
from swinv2_train.data.image_files import picture_format
from swinv2_train.data.labels import known_labels
from swinv2_train.data.parallel import ParallelMap
from swinv2_train.data.samples import LeftOut
from swinv2_train.data.shards import IMAGE_AND_TEXTS, ShardSet
from swinv2_train.data.sources import manifest_place
from swinv2_train.data.unit_values import missing_of
from swinv2_train.data.value_range import Nodata, numbers_of
from swinv2_train.lettering import fitted, font
from swinv2_train.writing import write_bytes

_TILE = 160
_CAPTION = 28
_TEXT = 11
_COLUMNS = 8


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

    @property
    def complete(self) -> bool:
        """True if every image and label is read and can be used."""
        lost = self.broken or self.truncated or self.empty or self.left_out.lost or self.label_problems
        return not (lost or self.across or (self.labeled and self.unlabeled))

    def labels_row(self) -> str:
        """Return how many samples have labels, and the range of their numbers."""
        if not self.card.class_counts:
            return f"{self.labeled:,} samples" if self.labeled else "none"
        numbers = self.card.class_counts
        return f"{self.labeled:,} of {self.card.num_samples:,} samples, numbers {min(numbers)} to {max(numbers)}"


@dataclass(frozen=True)
class _Checked:
    facts: ImageFacts | None = None
    num_bytes: int = 0
    labels: tuple[int, ...] | None = None
    label_problem: str | None = None
    broken: str | None = None
    digest: int = 0


class _Check:
    """Runs in the worker processes: read and decode one sample."""

    def __init__(self, shards: ShardSet, background: Background, max_pixels: int, nodata: Nodata) -> None:
        self._shards, self._background, self._max_pixels, self._nodata = shards, background, max_pixels, nodata

    def __call__(self, index: int) -> _Checked:
        try:
            raw = self._shards.read(index, IMAGE_AND_TEXTS)
            pixels = read_pixels(raw.data, self._max_pixels)
            facts = image_facts(raw.data, opaque(pixels, None, self._background), pixels, self._nodata)
            digest = hashlib.blake2b(raw.data, digest_size=8).digest()
            labels, problem = known_labels(raw)
            return _Checked(facts, len(raw.data), labels, problem, digest=int.from_bytes(digest))
        except BrokenSample as error:
            return _Checked(broken=error.reason)


def inspect(
    shards: ShardSet,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    background: Any = "white",
    max_pixels: int = MAX_PIXELS,
    nodata: Any = None,
) -> Inspection:
    """Decode every sample.

    Args:
        progress: gets the samples done and their number.
        background, max_pixels, nodata: as in the section `data` of a config.
    """
    missing = numbers_of(nodata)
    found = Inspection(Card(background=background, nodata=None if missing is None else list(missing)))
    digests = np.zeros(shards.num_samples, np.uint64)
    check = _Check(shards, background_color(background, ()), max_pixels, missing)
    checked_samples = ParallelMap(check, workers, name=shards.name)
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


def _count(found: Inspection, shards: ShardSet, index: int, checked: _Checked, facts: ImageFacts) -> None:
    found.card.add_image(facts, checked.num_bytes, checked.labels)
    if checked.label_problem is not None:
        found.label_problems.append((shards.name(index), checked.label_problem))
    elif checked.labels is not None:
        found.labeled += 1
    else:
        found.unlabeled += 1
        found.first_unlabeled = found.first_unlabeled or shards.name(index)


def contact_sheet(
    shards: ShardSet,
    path: Path,
    *,
    num_samples: int,
    seed: int = 0,
    options: DecodeOptions | None = None,
    nodata: Nodata = None,
) -> int:
    """Draw randomly chosen samples, with key and size, into one image; return the number of available samples.

    Of images with more than three channels the first three are shown; images with more than 8 bits are stretched to
    their own range.

    Raises:
        DataError: if the file's suffix is not that of an image format.
        OSError: if the file cannot be written.
    """
    from PIL import Image, ImageDraw

    options = options or DecodeOptions()
    chosen = np.random.default_rng(seed).permutation(shards.num_samples)[:num_samples]
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (_TILE + 8) + 8, rows * (_TILE + _CAPTION + 8) + 8), "white")
    draw, letters = ImageDraw.Draw(sheet), font(_TEXT)
    for place, index in enumerate(sorted(int(index) for index in chosen)):
        left, top = 8 + place % columns * (_TILE + 8), 8 + place // columns * (_TILE + _CAPTION + 8)
        try:
            pixels = read_pixels(shards.read(index).data, options.max_pixels)
            image = opaque(pixels, None, options.background)
            tile = _tile(image, missing_of(pixels, image.numpy(), nodata))
            sheet.paste(tile, (left + (_TILE - tile.width) // 2, top + (_TILE - tile.height) // 2))
            bits = f", {pixels.stored}" if pixels.stored else ", 16 bit" if image.dtype == torch.uint16 else ""
            text = f"{image.shape[2]} x {image.shape[1]} x {image.shape[0]}{bits}"
        except BrokenSample as error:
            draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), outline="red")
            text = f"broken: {error.reason}"
        draw.text((left, top + _TILE + 1), fitted(shards.key(index), letters, _TILE, keep_end=True), "black", letters)
        draw.text((left, top + _TILE + 14), fitted(text, letters, _TILE), "gray", letters)
    stream = io.BytesIO()
    sheet.save(stream, picture_format(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue())
    return len(chosen)


def _stretched(image: Tensor, missing: Tensor) -> Tensor:
    """Stretch stored values to 8 bits; pixels without data become 0.

    Args:
        missing: bool, of the same shape as the image.
    """
    values = image.to(torch.float64)
    present = values[~missing]
    low, high = (present.min(), present.max()) if present.numel() else (values.new_zeros(()), values.new_ones(()))
    extent = (high - low).clamp_min(1.0 if image.dtype == torch.uint16 else torch.finfo(torch.float32).tiny)
    stretched = ((values - low) / extent * 255).round()
    return stretched.masked_fill(missing, 0).clamp(0, 255).to(torch.uint8)


def _tile(image: Tensor, missing: np.ndarray) -> object:
    """Return a PIL image that fits into a tile.

    Args:
        missing: (C, H, W) bool: True for pixels without data, which are shown black.
    """
    from PIL import Image

    image = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    if image.dtype != torch.uint8:
        shown = missing[:3] if len(missing) >= 3 else missing[:1]
        image = _stretched(image, torch.from_numpy(shown).expand(image.shape))
    height, width = image.shape[1:]
    scale = _TILE / max(height, width)
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))), "bilinear")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
