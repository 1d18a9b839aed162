"""Pack images or videos into WebDataset tars of bounded size, with index, manifest and dataset card.

The bytes of a shard depend only on its samples and the options, not on the number of processes. A shard gets its final
name only once it is complete. It stores a fingerprint of its inputs, so rerunning an interrupted command resumes where
it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError, NoHeldOutImages, UnwritableData
from swinv2_train.data.label_smoothing import smooth_warning
from swinv2_train.data.object_cleaning import Cleaning
from swinv2_train.data.pack_entries import Entry, Source, counted_problems, fraction, problem_name
from swinv2_train.data.pack_prepare import Prepare
from swinv2_train.data.pack_record import Origin, check_other_splits, keys_of, origins
from swinv2_train.data.pack_sources import open_source
from swinv2_train.data.pack_split import RULE, SplitRule, divide
from swinv2_train.data.pack_tiles import tiled
from swinv2_train.data.pack_videos import PrepareVideos
from swinv2_train.data.pack_writer import FinishedShard, Packed, PackOptions, SplitWriter
from swinv2_train.data.parallel import CHUNK, ParallelMap
from swinv2_train.data.samples import VIDEO
from swinv2_train.data.video_packing import VideoPacking
from swinv2_train.writing import write_bytes

BROKEN_FILE = "broken.jsonl"
OBJECTS_FILE = "objects.jsonl"
"""File with the objects that were dropped or changed: a line for each reason."""
_SCRATCH = ".videos.tmp"
"""Folder in that of the shards for videos on their way into one."""
_TILE_BYTES = 32 << 20
"""Of the tiles that one process gets at a time, if a pixel has 8 bytes."""


def _no_progress(_split: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True)
class PackRun:
    """Settings of a packing that do not affect the bytes of its shards."""

    workers: int = 0
    """Decoding processes; 0: samples are decoded in this one."""
    overwrite: bool = False
    """Replace shards of another source or split."""
    progress: Callable[[str, int, int], None] = _no_progress
    """Is called with the split, the samples done, and their number."""


@dataclass
class PackReport:
    """Result of a packing."""

    cards: dict[str, Card] = field(default_factory=dict)
    """Card of each split."""
    broken: list[dict[str, str]] = field(default_factory=list)
    """`Entry.problem` of every image, video, or tile that was skipped."""
    label_problems: list[dict[str, str]] = field(default_factory=list)
    """The same of every one that was packed with a label that cannot be used."""
    unlabeled: int = 0
    """Samples that were packed without a label."""
    notes: list[str] = field(default_factory=list)
    """Contents of the source that were not read, one line each."""
    lost: bool = False
    """True if these contents may include samples or labels."""
    empty: int = 0
    """Tiles that were left out, because all of their pixels are without data or without a class."""
    smooth: dict[str, None] = field(default_factory=dict)
    """Names of label maps that look as if they were resized with interpolation, in order."""
    samples: str = "images"
    """Name of the samples, in the plural; `samples` if they can be tiles."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    """Objects that were dropped or changed."""
    num_shards: int = 0
    num_reused: int = 0
    """Shards that an earlier command had finished."""

    @classmethod
    def of(cls, source: Source, *, tiled: bool) -> PackReport:
        """Return what a source reports before it is packed."""
        refused = [{"path": path, "reason": reason} for path, reason in source.refused]
        samples = "samples" if tiled else f"{source.main}s"
        report = cls(broken=refused, notes=list(source.notes), lost=source.lost, samples=samples)
        if source.objects is not None:
            report.cleaning.merge(source.objects.cleaning)
        return report

    def add(self, split: str, shard: FinishedShard) -> None:
        self.cards.setdefault(split, Card()).add(shard.card)
        self.broken.extend(shard.broken)
        self.label_problems.extend(shard.label_problems)
        self.unlabeled += shard.unlabeled
        self.empty += shard.empty
        self.cleaning.merge(shard.cleaning)
        self.smooth |= dict.fromkeys(shard.smooth)
        self.num_shards += shard.num_samples > 0
        self.num_reused += shard.reused

    @property
    def complete(self) -> bool:
        """True if everything that looks like an image, a video, a label, or an object was packed and can be used."""
        lost = self.broken or self.label_problems or self.lost or self.cleaning.lost
        return not (lost or self._partly_labeled)

    @property
    def _partly_labeled(self) -> bool:
        """True if some samples have a label and others none."""
        unusable = self.unlabeled + len(self.label_problems)
        return self.unlabeled > 0 and unusable < sum(card.num_samples for card in self.cards.values())

    @property
    def warnings(self) -> list[str]:
        """Warnings about a packing that succeeded."""
        samples, lines = self.samples, []
        if self._partly_labeled:
            lines.append(f"{self.unlabeled:,} {samples} have no label, while others have one")
        if self.empty:
            tiles = "1 tile is" if self.empty == 1 else f"{self.empty:,} tiles are"
            lines.append(f"{tiles} left out: without data or without a class in every pixel")
        if self.smooth:
            lines.append(smooth_warning(list(self.smooth)))
        channels = sorted(Card.merged(self.cards.values()).channels)
        if len(channels) > 1 and channels != [1, 3]:
            counts = ", ".join(
                f"{n} with {c}" for card in self.cards.values() for c, n in sorted(card.channels.items())
            )
            lines.append(
                f"the {samples} differ in their number of channels ({counts}), and no model reads them all: pack again "
                "with --channels to keep one kind"
            )
        lines += self._without_objects
        types = sum((stats.types for card in self.cards.values() for stats in card.values.values()), Counter())
        others = {kind: count for kind, count in sorted(types.items()) if kind != "uint16"}
        if 0 < sum(others.values()) < sum(card.num_samples for card in self.cards.values()):
            counts = ", ".join(f"{count:,} are {kind}" for kind, count in others.items())
            lines.append(
                f"the {samples} have different types of values ({counts}, others unsigned of 8 or 16 bits): all are "
                "read with one data.scale"
            )
        if len(self.cards) == 2:
            trained, held_out = self.cards.values()
            names = trained.class_names or []
            only = sorted(_classes(held_out) - _classes(trained))
            if only:
                shown = ", ".join(str(names[k]) if k < len(names) else str(k) for k in only[:5])
                lines.append(
                    f"{len(only)} classes have no training {samples[:-1]}: {shown}{', ...' if only[5:] else ''}"
                )
        return lines

    @property
    def _without_objects(self) -> list[str]:
        """A warning for each split whose annotations have no object that can be learned."""
        found = {name: card.objects for name, card in self.cards.items() if card.objects is not None}
        return [f"{name}: {why}" for name, facts in found.items() if (why := facts.nothing)]


def _classes(card: Card) -> set[int]:
    if card.objects is not None:
        return set(card.objects.objects)
    return set(card.class_counts) | set(card.label_maps.pixels if card.label_maps else ())


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
        source: the folder, list, or shards with images, or what `open_source` or `open_videos` has found there.
        eval_share: fraction of the samples that goes to the split `eval`, see `pack_split`.
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
    video = (options.video or VideoPacking()) if found.main == VIDEO else None
    options = replace(options, labels=found.labels, video=video)
    report = PackReport.of(found, tiled=options.tile is not None)
    names = (split, "eval") if eval_share else (split,)
    rule = SplitRule(eval_share, options.seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _only_writer(out):
            known = origins(out)
            if not how.overwrite:
                _refuse_overlap(out, known, found.root, names, found.main)
                check_other_splits(out, names, found.class_names)
                rule = _recorded_rule(out, known, found.root, names, rule)
            divided = _split(found, names, rule, report, how.progress)
            measured = functools.partial(how.progress, "sizes")
            splits = {name: tiled(found, entries, options, measured) for name, entries in divided.items()}
            record = rule.to_json()
            writers = {
                name: SplitWriter(out, name, replace(found, entries=entries), options, record)
                for name, entries in splits.items()
            }
            for writer in writers.values():
                writer.check(known, how.overwrite)
            if not all(writer.is_finished() for writer in writers.values()):
                _remove_moved(out, known, writers, splits, may_differ=how.overwrite or rule.rule == RULE)
            with _prepared(found, options, out, how.workers) as prepare:
                _write_splits(writers, prepare, report, how.progress)
            _write_lines(out / BROKEN_FILE, report.broken)
            _write_lines(out / OBJECTS_FILE, report.cleaning.rows())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnwritableData(
                f"no space is left for {out}: the shards finished so far ({report.num_shards}) are valid; make room "
                "and rerun the same command to resume"
            ) from None
        raise DataError(f"{error.filename or out} cannot be written ({error.strerror})") from None
    if not any(card.num_samples for card in report.cards.values()):
        raise DataError(_nothing_packed(report, found, out))
    return report


def _write_splits(
    writers: dict[str, SplitWriter],
    prepare: ParallelMap,
    report: PackReport,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write the shards of all splits, and complete those with samples.

    A split without a sample replaces an earlier one only if the other has some. With none at all, the options are wrong
    (the classes, for example), and what was packed before stays.
    """
    for name, writer in writers.items():
        for shard in writer.shards(prepare, functools.partial(progress, name)):
            report.add(name, shard)
        if report.cards[name].num_samples:
            writer.finish(report.cards[name])
    empty = [name for name in writers if not report.cards[name].num_samples]
    if len(empty) < len(writers):
        for name in empty:
            writers[name].finish(report.cards[name])


def _nothing_packed(report: PackReport, found: Source, out: Path) -> str:
    """Return why no sample was packed."""
    if report.empty and not report.broken:
        tiles = "the only tile" if report.empty == 1 else f"all {report.empty:,} tiles"
        options = "--nodata, or the tag GDAL_NODATA of the files,"
        if found.labels is not None:
            options = "--nodata, --ignore, or --zero-is-ignore"
        return (
            f"{tiles} of {found.root} would be left out: without data or without a class in every pixel; check that "
            f"{options} names the right value"
        )
    tried = report.broken[len(found.refused) :] or report.broken  # those that are missing explain less
    count = counted_problems(report.broken, found.main)
    if report.empty:
        summary = (
            f"{found.root} has no tile to pack: {count} cannot be read, and {report.empty:,} are without data or class"
        )
    elif len(report.broken) == 1:
        summary = f"the only {count.partition(' ')[2]} of {found.root} cannot be read"
    else:
        summary = f"none of the {count} of {found.root} can be read"
    return f"{summary}: see {out / BROKEN_FILE}; the first: {problem_name(tried[0])}: {tried[0]['reason']}"


@contextlib.contextmanager
def _prepared(source: Source, options: PackOptions, out: Path, workers: int) -> Iterator[ParallelMap]:
    """Start the processes that prepare the samples; stop them at the end, and remove the files that they made."""
    scratch = out / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # of a command that was killed
    task: Callable[[Entry], Packed] = Prepare(source, options)
    if source.main == VIDEO:
        scratch.mkdir()
        task = PrepareVideos(source, options, scratch)
    prepare = ParallelMap(task, workers, name=lambda entry: entry.name, chunk=_chunk(options))
    complete = False
    try:
        yield prepare
        complete = True
    finally:
        prepare.close(wait=complete)
        shutil.rmtree(scratch, ignore_errors=True)


def _chunk(options: PackOptions) -> int:
    """Return the samples that a process gets at a time: fewer tiles, because many finished ones wait in memory, and one
    video, because it takes long."""
    if options.video is not None:
        return 1
    if options.tile is None:
        return CHUNK
    return max(1, min(CHUNK, _TILE_BYTES // (8 * options.tile.side**2)))


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
            count = f"{len(source.entries)} {source.main}s"
            raise NoHeldOutImages(f"--eval-share {rule.share:g} of {count} leaves none for {name}")
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
                "directory, or add --overwrite to split again"
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
                    "choose another directory, or add --overwrite to split again"
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


def _refuse_overlap(out: Path, known: dict[Path, Origin], root: str, splits: Collection[str], main: str) -> None:
    """Check that no other split in `out` was made from this source: its samples would be in this one too."""
    for tar, origin in known.items():
        name = _split_of(tar)
        if origin.source == root and name not in splits:
            raise DataError(
                f"{out} contains {name} of {root}, whose {main}s would also be in {' and '.join(splits)}: use the same "
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


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines; without any, remove those of an earlier command."""
    if lines:
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode(), flush=True)
    else:
        path.unlink(missing_ok=True)
