"""Write the shards of one split in order, skipping those that an earlier command finished."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.data.card import Card, ImageFacts
from swinv2_train.data.card_label_maps import LabelMapFacts
from swinv2_train.data.card_objects import ObjectFacts
from swinv2_train.data.card_videos import VideoCounts
from swinv2_train.data.decode import MAX_PIXELS
from swinv2_train.data.errors import DataError
from swinv2_train.data.index import build_index, checksums, write_index
from swinv2_train.data.index_rows import write_rows
from swinv2_train.data.index_store import index_path, remove_index, rows_path
from swinv2_train.data.object_cleaning import Cleaning
from swinv2_train.data.pack_entries import Entry, Source
from swinv2_train.data.pack_members import Content, padded, size_of, tar_bytes, tar_writer, write_member
from swinv2_train.data.pack_record import Origin, add_checksums, confirmed, known_manifest, packed_header
from swinv2_train.data.parallel import ParallelMap
from swinv2_train.data.samples import IMAGE, VIDEO, Scope
from swinv2_train.data.sources import MANIFEST_SUFFIX, ListedShard, Manifest, manifest_text
from swinv2_train.data.value_range import numbers_of
from swinv2_train.text import counted
from swinv2_train.writing import write_bytes

if TYPE_CHECKING:
    from webdataset import TarWriter

    from swinv2_train.data.label_rules import LabelRules
    from swinv2_train.data.tiling import Tiling
    from swinv2_train.data.video_packing import VideoPacking

_VERSION = 1  # version of the packed bytes; part of every fingerprint
_TILES_VERSION = 2  # the same of tiles: the first one scaled those of 12 bits
_LABELS_VERSION = 2  # the same of images with label maps: the first one skipped turned TIFFs and did not warn


@dataclass(frozen=True)
class PackOptions:
    """Options that decide the bytes of the shards, in addition to the images or videos."""

    max_bytes: int = 256 << 20
    """Upper bound of a shard; a single larger sample gets its own shard."""
    max_count: int = 10_000
    """Most samples in a shard."""
    resize: int | None = None
    """Shrink images whose longer side is above this many pixels."""
    quality: int = 92
    """JPEG quality of images that were shrunk."""
    channels: int | None = None
    """Leave out images that cannot be read with this number of channels."""
    seed: int = 0
    """Decides the order of the images and the split."""
    background: Any = "white"
    """Color behind transparent pixels for the statistics of the card, as `data.background`; shards keep the alpha."""
    max_pixels: int = MAX_PIXELS
    """Leave out images with more pixels."""
    image: str | None = None
    """Member to pack of samples with several images, if the source is shards."""
    nodata: Any = None
    """Stored value of pixels without data, for the statistics of the card, as `data.nodata`."""
    labels: LabelRules | None = None
    """Meaning of the values of label maps; None: images have none."""
    tile: Tiling | None = None
    """Cut larger images into tiles."""
    video: VideoPacking | None = None
    """Options of packing videos; None: the samples are images."""


@dataclass(frozen=True)
class Packed:
    """One image or video that is ready to be written, or the reason why it is skipped."""

    entry: Entry
    members: dict[str, Content] = field(default_factory=dict)
    """The main one first."""
    facts: ImageFacts | None = None
    labels: tuple[int, ...] | None = None
    broken: str | None = None
    label_problem: str | None = None
    """Why the label that it has cannot be used."""
    label_map: LabelMapFacts | None = None
    """Contribution of its label map to the card."""
    objects: ObjectFacts | None = None
    """Contribution of its objects to the card."""
    cleaning: Cleaning | None = None
    """Objects that were dropped or changed; those of a scene come with its first tile."""
    smooth: str | None = None
    """Name of its label map if it looks as if it was resized with interpolation."""
    empty: bool = False
    """True for a tile that is left out because all of its pixels are without data, or without a class."""
    video: VideoCounts | None = None

    @property
    def labeled(self) -> bool:
        """True if it has a label, a label map, or objects, which may be none."""
        return self.labels is not None or self.label_map is not None or self.objects is not None


@dataclass(frozen=True)
class FinishedShard:
    """One shard, newly written or found finished, and its entries start..stop."""

    stop: int
    num_samples: int
    """0: all entries were broken, and the shard does not exist."""
    num_bytes: int
    fingerprint: str
    card: Card
    broken: list[dict[str, str]]
    label_problems: list[dict[str, str]]
    """`Entry.problem` of images that are in the shard and whose label cannot be used."""
    reused: bool
    sha256: str = ""
    """Hash of the bytes of the tar; empty if an earlier version packed it."""
    unlabeled: int = 0
    """Images without a label."""
    empty: int = 0
    """Tiles that were left out because they are empty."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    """Objects that were dropped or changed."""
    smooth: list[str] = field(default_factory=list)
    """Names of label maps that look as if they were resized with interpolation; tiles have that of their scene."""


_LATER = {
    name: getattr(PackOptions(), name)
    for name in ("background", "max_pixels", "image", "nodata", "labels", "tile", "video")
}
"""Options that the fingerprints of earlier versions do not contain, with the defaults that leave these as they are."""


class SplitWriter:
    """The shards of one split of `source` in the directory `out`.

    `divided` is the rule that the split is one side of, for the record.
    """

    def __init__(
        self, out: Path, split: str, source: Source, options: PackOptions, divided: dict[str, Any] | None
    ) -> None:
        self._out, self._split, self._source, self._options = out, split, source, options
        self._origin = {"source": source.root, "split": divided, "annotated_by": source.annotated_by}
        self._manifest = out / f"{split}{MANIFEST_SUFFIX}"
        self._written: dict[str, ListedShard] = {}
        nodata = numbers_of(options.nodata)
        self._nodata = None if nodata is None else list(nodata)

    def check(self, known: dict[Path, Origin], overwrite: bool) -> None:
        """Refuse to replace shards that were not packed, or unless `overwrite` have another source or annotations.

        Raises DataError.
        """
        for tar in self._present():
            origin = known.get(tar)
            if origin is None:
                raise DataError(f"{tar} was not written by swinv2-data pack: choose another directory")
            if origin.source != self._source.root and not overwrite:
                made_from = origin.source or "a source that its manifest does not name"
                raise DataError(
                    f"{self._out} holds {self._split} of {made_from}: choose another directory, or give --overwrite"
                )
            if origin.annotated_by not in (None, self._source.annotated_by) and not overwrite:
                before, now = (given or "no annotations" for given in (origin.annotated_by, self._source.annotated_by))
                raise DataError(
                    f"{self._out} holds {self._split} of {origin.source} with {before}, and this command has {now}: "
                    "choose another directory, or give --overwrite"
                )
        if not overwrite:
            self._keep_order()
        for leftover in self._out.glob(f".{self._split}-*.tmp"):
            leftover.unlink()

    def _keep_order(self) -> None:
        """Refuse to number the classes of finished shards in another order, as earlier versions did with numbers."""
        known, now = known_manifest(self._manifest), self._source.class_names
        if known is None or not now:
            return
        before = known.card.get("classes", {}).get("names") or []
        if before != now and sorted(before) == sorted(now):
            number = next(n for n, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
            raise DataError(
                f"class {number} is {before[number]!r} in {self._manifest} and would be {now[number]!r}: "
                f"--class-names {self._manifest} keeps the numbers, --overwrite numbers the classes again"
            )

    def is_finished(self) -> bool:
        """Return whether an earlier command has written all shards of the split, from the same images."""
        position, number = 0, 0
        while position < len(self._source.entries):
            shard = self._finished(f"{self._split}-{number:06d}.tar", position)
            if shard is None:
                return False
            position, number = shard.stop, number + 1
        return len(self._present()) == number and self._manifest.exists()

    def remove(self, tar: Path) -> None:
        """Remove a shard and the manifest, which counts it."""
        self._manifest.unlink(missing_ok=True)
        tar.unlink()
        remove_index(tar)

    def shards(self, prepare: ParallelMap, progress: Callable[[int, int], None]) -> Iterator[FinishedShard]:
        """Write what is missing; `progress` is called with the number of finished entries and the total."""
        total, position = len(self._source.entries), 0
        ahead: _Ahead | None = None
        while position < total:
            name = f"{self._split}-{len(self._written):06d}.tar"
            shard = self._finished(name, position)
            if shard is not None:
                ahead = None
            else:
                ahead = ahead or _Ahead(prepare(itertools.islice(self._source.entries, position, None)))
                shard = self._write(name, position, ahead, progress)
            if shard.num_samples:
                self._written[name] = ListedShard(shard.num_samples, shard.num_bytes, shard.fingerprint, shard.sha256)
            position = shard.stop
            progress(position, total)
            yield shard

    def finish(self, card: Card) -> None:
        """Remove leftovers of a longer earlier split and write the manifest, which completes the split."""
        for tar in self._present():
            if tar.name not in self._written:
                tar.unlink()
                remove_index(tar)
        card.split, card.class_names = self._split, self._source.class_names
        if card.objects is not None and self._source.objects is not None:
            card.objects.categories = self._source.objects.categories
            if card.label_maps is not None:
                card.label_maps.names = self._source.label_map_names
        if self._written:
            text = manifest_text(Manifest(card.to_json(), self._written, self._origin))
            write_bytes(self._manifest, text.encode(), flush=True)

    def _present(self) -> list[Path]:
        numbered = re.compile(rf"{re.escape(self._split)}-\d{{6,}}\.tar")
        return sorted(path for path in self._out.iterdir() if numbered.fullmatch(path.name))

    def _finished(self, name: str, start: int) -> FinishedShard | None:
        """Return the shard of this name if it contains exactly the entries that it would be made of now."""
        tar = self._out / name
        header = packed_header(tar)
        record = header["extra"].get("pack") if header else None
        if not header or not record or not tar.is_file() or record["start"] != start:
            return None
        stat = tar.stat()
        touched = (stat.st_size, stat.st_mtime_ns) != (header["tar_size"], header["tar_mtime_ns"])
        if touched and not confirmed(tar, str(record.get("sha256", ""))):
            return None
        if record["fingerprint"] != self._fingerprint(start, record["stop"]):
            return None
        if "alpha" not in header["extra"]["card"]:  # an earlier version shrank transparent images without their alpha
            return None
        add_checksums(tar)
        return FinishedShard(
            stop=record["stop"],
            num_samples=header["num_samples"],
            num_bytes=stat.st_size,
            fingerprint=record["fingerprint"],
            card=Card.from_json(header["extra"]["card"]),
            broken=record["broken"],
            label_problems=record.get("label_problems", []),
            reused=True,
            sha256=str(record.get("sha256", "")),
            unlabeled=int(record.get("unlabeled", 0)),
            empty=int(record.get("empty", 0)),
            cleaning=Cleaning.from_json(record.get("cleaning", {})),
            smooth=record.get("smooth", []),
        )

    def _write(self, name: str, start: int, ahead: _Ahead, progress: Callable[[int, int], None]) -> FinishedShard:
        card, stop, unlabeled, empty = Card(background=self._options.background, nodata=self._nodata), start, 0, 0
        broken: list[dict[str, str]] = []
        label_problems: list[dict[str, str]] = []
        cleaning = Cleaning()
        smooth: dict[str, None] = {}
        temporary = self._out / f".{name}.tmp"
        try:
            with temporary.open("wb") as file:
                with tar_writer(file) as tar:
                    for packed in ahead:
                        if packed.broken is not None:
                            broken.append(packed.entry.problem(packed.broken))
                        elif packed.empty:
                            empty += 1
                        elif card.num_samples and self._full(tar.tarstream.offset, card.num_samples, packed):
                            ahead.give_back(packed)
                            break
                        else:
                            _add(tar, packed, card)
                            unlabeled += not packed.labeled and packed.label_problem is None
                            if packed.label_problem:
                                label_problems.append(packed.entry.problem(packed.label_problem))
                            if packed.smooth:
                                smooth[packed.smooth] = None
                        if packed.cleaning is not None:
                            cleaning.merge(packed.cleaning)
                        stop += 1
                        progress(stop, len(self._source.entries))
                file.flush()
                os.fsync(file.fileno())
            card.broken = len(broken)
            fingerprint = self._fingerprint(start, stop)
            with temporary.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            shard = FinishedShard(
                stop,
                card.num_samples,
                temporary.stat().st_size,
                fingerprint,
                card,
                broken,
                label_problems,
                reused=False,
                sha256=sha256,
                unlabeled=unlabeled,
                empty=empty,
                cleaning=cleaning,
                smooth=list(smooth),
            )
            if shard.num_samples:
                self._publish(temporary, self._out / name, start, shard)
            return shard
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, tar: Path, start: int, shard: FinishedShard) -> None:
        """Index the finished file and rename it to its final name."""
        record = {
            **self._origin,
            "start": start,
            "stop": shard.stop,
            "fingerprint": shard.fingerprint,
            "sha256": shard.sha256,
            "broken": shard.broken,
            "label_problems": shard.label_problems,
            "unlabeled": shard.unlabeled,
            "empty": shard.empty,
            "cleaning": shard.cleaning.to_json(),
            "smooth": shard.smooth,
        }
        main = self._source.main
        scope = Scope(main, all_members=main != IMAGE)
        fd = os.open(temporary, os.O_RDONLY)
        try:
            index = build_index(tar.name, fd, {"card": shard.card.to_json(), "pack": record}, scope)
            index.checksums = checksums(index, fd)
        finally:
            os.close(fd)
        if index.num_samples != shard.num_samples:
            raise DataError(
                f"{tar.name}: {counted(shard.num_samples, 'sample')} were written, {index.num_samples} found again"
            )
        self._manifest.unlink(missing_ok=True)  # it describes the previous content
        # Write the index first: the next command would treat a tar without one as foreign.
        write_index(index, index_path(tar, main))
        write_rows(index, rows_path(tar, main))
        temporary.replace(tar)
        remove_index(tar, [other for other in (IMAGE, VIDEO) if other != main])  # of a shard that this one replaces

    def _full(self, offset: int, count: int, packed: Packed) -> bool:
        needed = sum(tar_bytes(packed.entry.key, extension, data) for extension, data in packed.members.items())
        return count >= self._options.max_count or padded(offset + needed) > self._options.max_bytes

    def _fingerprint(self, start: int, stop: int) -> str:
        """Hash everything that determines the bytes: options, the entries, and the next one, which no longer fit."""
        options = {name: value for name, value in asdict(self._options).items() if _LATER.get(name, ...) != value}
        version = _VERSION if self._options.tile is None else _TILES_VERSION
        versions = [version] if self._options.labels is None else [version, _LABELS_VERSION]
        digest = hashlib.sha256(json.dumps([*versions, options, self._split]).encode())
        for entry in self._source.entries[start : stop + 1]:
            digest.update(json.dumps([entry.key, entry.version, entry.label]).encode())
        digest.update(b"end" if stop >= len(self._source.entries) else b"more")
        return digest.hexdigest()


class _Ahead:
    """An iterator whose last item can be pushed back."""

    def __init__(self, items: Iterator[Packed]) -> None:
        self._items = items
        self._returned: list[Packed] = []

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self) -> Packed:
        return self._returned.pop() if self._returned else next(self._items)

    def give_back(self, item: Packed) -> None:
        self._returned.append(item)


def _add(tar: TarWriter, packed: Packed, card: Card) -> None:
    assert packed.facts is not None
    for extension, content in packed.members.items():
        write_member(tar, packed.entry.key, extension, content)
    size = size_of(next(iter(packed.members.values())))
    card.add_image(packed.facts, size, packed.labels, packed.label_map, packed.objects, packed.video)
