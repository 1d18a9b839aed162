"""Pack images into WebDataset tars of bounded size, with index, manifest and dataset card.

The bytes of a shard depend only on its images and the options, not on the number of processes. A shard gets its final
name only once it is complete. It stores a fingerprint of its inputs, so rerunning an interrupted command resumes where
it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swinv2_train.data.array_image import ARRAY_KINDS
from swinv2_train.data.background import background_color, resize_transparent
from swinv2_train.data.card import Card
from swinv2_train.data.decode import image_facts, opaque, read_pixels
from swinv2_train.data.errors import BrokenSample, DataError, NoHeldOutImages, UnwritableData
from swinv2_train.data.geometry import resize
from swinv2_train.data.image_header import sniff
from swinv2_train.data.labels import known_labels
from swinv2_train.data.pack_record import Origin, keys_of, origins
from swinv2_train.data.pack_sources import Entry, Source, fraction, open_source
from swinv2_train.data.pack_split import RULE, SplitRule, divide
from swinv2_train.data.pack_writer import FinishedShard, Packed, PackOptions, SplitWriter
from swinv2_train.data.parallel import ParallelMap
from swinv2_train.data.pixels import Pixels
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.unit_values import sources
from swinv2_train.data.value_range import numbers_of
from swinv2_train.writing import write_bytes

_EXTENSIONS = {"jpeg": "jpg", "tiff": "tif"}
"""Extension of the members in a shard, for formats that are not called like their extension."""
BROKEN_FILE = "broken.jsonl"


def _no_progress(_split: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True)
class PackRun:
    """Settings of a packing that do not affect the bytes of its shards."""

    workers: int = 0
    """Decoding processes; 0: images are decoded in this one."""
    overwrite: bool = False
    """Replace shards of another source or split."""
    progress: Callable[[str, int, int], None] = _no_progress
    """Is called with the split, the images done, and their number."""


@dataclass
class PackReport:
    """Result of a packing."""

    cards: dict[str, Card] = field(default_factory=dict)
    """Card of each split."""
    broken: list[dict[str, str]] = field(default_factory=list)
    """{"path", "reason"} of every image that was skipped."""
    label_problems: list[dict[str, str]] = field(default_factory=list)
    """{"path", "reason"} of every image that was packed with a label that cannot be used."""
    unlabeled: int = 0
    """Images that were packed without a label."""
    notes: list[str] = field(default_factory=list)
    """Contents of the source that were not read, one line each."""
    lost: bool = False
    """True if these contents may include images or labels."""
    num_shards: int = 0
    num_reused: int = 0
    """Shards that an earlier command had finished."""

    def add(self, split: str, shard: FinishedShard) -> None:
        self.cards.setdefault(split, Card()).add(shard.card)
        self.broken.extend(shard.broken)
        self.label_problems.extend(shard.label_problems)
        self.unlabeled += shard.unlabeled
        self.num_shards += shard.num_samples > 0
        self.num_reused += shard.reused

    @property
    def complete(self) -> bool:
        """True if everything that looks like an image or a label was packed and can be used."""
        return not (self.broken or self.label_problems or self.lost or self._partly_labeled)

    @property
    def _partly_labeled(self) -> bool:
        """True if some images have a label and others none."""
        unusable = self.unlabeled + len(self.label_problems)
        return self.unlabeled > 0 and unusable < sum(card.num_samples for card in self.cards.values())

    @property
    def warnings(self) -> list[str]:
        """Warnings about a packing that succeeded."""
        lines = []
        if self._partly_labeled:
            lines.append(f"{self.unlabeled:,} images have no label, while others have one")
        channels = sorted(Card.merged(self.cards.values()).channels)
        if len(channels) > 1 and channels != [1, 3]:
            counts = ", ".join(
                f"{n} with {c}" for card in self.cards.values() for c, n in sorted(card.channels.items())
            )
            lines.append(
                f"the images differ in their number of channels ({counts}), and no model reads them all: pack again "
                "with --channels to keep one kind"
            )
        types = sum((stats.types for card in self.cards.values() for stats in card.values.values()), Counter())
        others = {kind: count for kind, count in sorted(types.items()) if kind != "uint16"}
        if 0 < sum(others.values()) < sum(card.num_samples for card in self.cards.values()):
            counts = ", ".join(f"{count:,} are {kind}" for kind, count in others.items())
            lines.append(
                f"the images have different types of values ({counts}, others unsigned of 8 or 16 bits): all are read "
                "with one data.scale"
            )
        if len(self.cards) == 2:
            trained, held_out = self.cards.values()
            names = trained.class_names or []
            only = sorted(set(held_out.class_counts) - set(trained.class_counts))
            if only:
                shown = ", ".join(str(names[k]) if k < len(names) else str(k) for k in only[:5])
                lines.append(f"{len(only)} classes have no training image: {shown}{', ...' if only[5:] else ''}")
        return lines


class _Prepare:
    """Runs in the worker processes: read, decode, check, shrink."""

    def __init__(self, source: Source, options: PackOptions) -> None:
        self._source, self._options = replace(source, entries=[], refused=(), notes=()), options
        self._background = background_color(options.background, ())

    def __call__(self, entry: Entry) -> Packed:
        try:
            data, texts = self._source.read(entry)
            self._check_kind(sniff(data))
            pixels, image = self._decoded(data)
            limit = self._options.resize
            if limit is not None and max(image.shape[1:]) > limit:
                if pixels.stored or self._source.arrays:
                    kind = pixels.stored or "an array"
                    raise BrokenSample(f"--resize is for image files of 8 or 16 bits, and it is {kind}")
                pixels = _shrink(pixels, image, limit, keep_alpha=self._background is not None)
                image = opaque(pixels, self._options.channels, self._background)
                data = encode(pixels.image, self._options.quality, alpha=pixels.alpha)
            facts = image_facts(data, image, pixels, numbers_of(self._options.nodata))
        except OSError as error:
            return Packed(entry, broken=error.strerror or str(error))
        except BrokenSample as error:
            return Packed(entry, broken=error.reason)
        labels, problem = known_labels(RawSample(entry.key, facts.format, texts))
        members = {_EXTENSIONS.get(facts.format, facts.format): data} | texts
        return Packed(entry, members, facts, labels, label_problem=problem)

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


def encode(image: Tensor, quality: int, *, alpha: bool = False) -> bytes:
    """Encode a shrunk image: JPEG for 8 bit with 1 or 3 channels, deflated TIFF for all others.

    With alpha as the last channel: PNG for gray and RGB.
    """
    if alpha and image.shape[0] in (2, 4):
        import imagecodecs

        return imagecodecs.png_encode(image.permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    array = image.permute(1, 2, 0).contiguous().numpy()
    if image.dtype == torch.uint8 and image.shape[0] in (1, 3):
        from PIL import Image

        Image.fromarray(array if image.shape[0] == 3 else array[..., 0]).save(buffer, "JPEG", quality=quality)
    else:
        import tifffile

        if image.shape[0] == 1:
            tifffile.imwrite(buffer, array[..., 0], photometric="minisblack", compression="zlib")
        else:
            kind: dict[str, Any] = {"photometric": "rgb" if image.shape[0] == 3 else "minisblack"}
            if alpha:
                kind["extrasamples"] = ["unspecified"] * (image.shape[0] - 2) + ["unassalpha"]
            tifffile.imwrite(buffer, array, **kind, planarconfig="contig", compression="zlib")
    return buffer.getvalue()


def pack(
    source: str | Source,
    out: Path,
    options: PackOptions,
    *,
    split: str = "train",
    eval_share: float = 0.0,
    classes: bool = False,
    class_names: Path | None = None,
    how: PackRun = PackRun(),
) -> PackReport:
    """Pack a folder, a list (CSV or JSONL) or shards into `out`/<split>-NNNNNN.tar.

    Args:
        source: the folder, list, or shards, or what `open_source` has found there.
        eval_share: fraction of the images that goes to the split `eval`, see `pack_split`.
        classes: the subfolders of a folder are its classes.
        class_names: file with the order of the classes: a name per line, or a manifest. Without one they are numbered
            in the order of `in_order`.

    Raises:
        DataError: if the source has no images, `out` contains something else, or the disk is full. Shards that were
            finished until then stay valid.
    """
    found = (
        source
        if isinstance(source, Source)
        else open_source(
            source, classes=classes, class_names=class_names, seed=options.seed, out=out, image=options.image
        )
    )
    refused = [{"path": path, "reason": reason} for path, reason in found.refused]
    report = PackReport(broken=refused, notes=list(found.notes), lost=found.lost)
    names = (split, "eval") if eval_share else (split,)
    rule = SplitRule(eval_share, options.seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _only_writer(out):
            known = origins(out)
            if not how.overwrite:
                _refuse_overlap(out, known, found.root, names)
                rule = _recorded_rule(out, known, found.root, names, rule)
            splits = _split(found, names, rule, report, how.progress)
            record = rule.to_json()
            writers = {
                name: SplitWriter(out, name, replace(found, entries=entries), options, record)
                for name, entries in splits.items()
            }
            for writer in writers.values():
                writer.check(known, how.overwrite)
            if not all(writer.is_finished() for writer in writers.values()):
                _remove_moved(out, known, writers, splits, may_differ=how.overwrite or rule.rule == RULE)
            prepare = ParallelMap(_Prepare(found, options), how.workers, name=lambda entry: entry.path)
            try:
                for name, writer in writers.items():
                    for shard in writer.shards(prepare, functools.partial(how.progress, name)):
                        report.add(name, shard)
                    writer.finish(report.cards[name])
            finally:
                prepare.close()
            _write_broken(out, report.broken)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnwritableData(
                f"no space is left for {out}: the {report.num_shards} shards finished so far are valid; make room and "
                "rerun the same command to resume"
            ) from None
        raise DataError(f"{error.filename or out} cannot be written ({error.strerror})") from None
    if not any(card.num_samples for card in report.cards.values()):
        raise DataError(f"none of the {len(report.broken)} images of {found.root} can be read: see {out / BROKEN_FILE}")
    return report


def _split(
    source: Source,
    names: Sequence[str],
    rule: SplitRule,
    report: PackReport,
    progress: Callable[[str, int, int], None],
) -> dict[str, list[Entry]]:
    """Return the entries of each split; messages about copies of images go into the report."""
    if not rule.share:
        return {names[0]: source.entries}
    division = divide(source, rule, progress)
    report.notes += division.notes
    report.lost |= division.leaked
    splits = dict(zip(names, (division.train, division.held_out), strict=True))
    for name, entries in splits.items():
        if not entries:
            raise NoHeldOutImages(f"--eval-share {rule.share:g} of {len(source.entries)} images leaves none for {name}")
    return splits


def _recorded_rule(out: Path, known: dict[Path, Origin], root: str, names: Sequence[str], rule: SplitRule) -> SplitRule:
    """Return the rule that shards in `out` were split by, if they belong to this source; else the current one.

    Raises DataError if they were split by another share or seed: images would move from one side to the other.
    """
    ours = {tar: origin for tar, origin in known.items() if origin.source == root and _split_of(tar) in names}
    for tar, origin in ours.items():
        if origin.split is None:
            return _earlier_rule(out, ours, names, rule)
        before = (origin.split.get("share"), origin.split.get("seed") if rule.share else rule.seed)
        if before != (rule.share, rule.seed):
            given = f"--eval-share {before[0]:g} --seed {before[1]}" if before[0] else "no --eval-share"
            raise DataError(
                f"{out} contains {tar.name} of {root}, packed with {given}: use the same again, choose another "
                "directory, or add --overwrite to split the images again"
            )
        rule = replace(rule, rule=int(origin.split.get("rule", RULE)))
    return rule


def _earlier_rule(out: Path, ours: Collection[Path], names: Sequence[str], rule: SplitRule) -> SplitRule:
    """Return the first rule if it reproduces shards that an earlier version wrote without recording share and seed."""
    earlier = replace(rule, rule=1)
    for tar in ours:
        for key in keys_of(tar):
            side = names[-1] if fraction(f"split/{rule.seed}/{key}") < rule.share else names[0]
            if rule.share and side != _split_of(tar):
                raise DataError(
                    f"{out} contains {tar.name}, packed with another --eval-share or --seed: use the same again, "
                    "choose another directory, or add --overwrite to split the images again"
                )
    return earlier


def _remove_moved(
    out: Path,
    known: Collection[Path],
    writers: dict[str, SplitWriter],
    splits: dict[str, list[Entry]],
    may_differ: bool,
) -> None:
    """Remove the shards with images that now belong to another split, before that one is written.

    Otherwise a command that is interrupted would leave these images in both.
    """
    if len(splits) < 2 or not may_differ:
        return
    belongs = {entry.key: name for name, entries in splits.items() for entry in entries}
    for tar in known:
        name = _split_of(tar)
        if name in splits and any(belongs.get(key, name) != name for key in keys_of(tar)):
            writers[name].remove(tar)


def _refuse_overlap(out: Path, known: dict[Path, Origin], root: str, splits: Collection[str]) -> None:
    """Check that no other split in `out` was made from this source: its images would be in this one too."""
    for tar, origin in known.items():
        name = _split_of(tar)
        if origin.source == root and name not in splits:
            raise DataError(
                f"{out} contains {name} of {root}, whose images would also be in {' and '.join(splits)}: use the same "
                "--eval-share as before, or choose another directory (--overwrite packs anyway)"
            )


def _split_of(tar: Path) -> str:
    return tar.name.rpartition("-")[0]


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Lock the directory; the kernel frees it whatever happens to this process."""
    fd = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another swinv2-data pack is writing to {out}") from None
        yield
    finally:
        os.close(fd)


def _write_broken(out: Path, broken: list[dict[str, str]]) -> None:
    path = out / BROKEN_FILE
    if broken:
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in broken).encode(), flush=True)
    else:
        path.unlink(missing_ok=True)
