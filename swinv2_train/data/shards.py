"""A set of shards as one array of samples: `shards.read(index)`."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swinv2_train.data.card import Card
from swinv2_train.data.card_label_maps import MEMBER
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.image_files import is_array
from swinv2_train.data.index import build_index, misplaced_member
from swinv2_train.data.index_store import open_copy
from swinv2_train.data.objects import MEMBER as OBJECTS
from swinv2_train.data.opening import find_shards
from swinv2_train.data.prefetch import Prefetcher
from swinv2_train.data.pyav import load_av
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.remote import NoPartsError, ShardCache
from swinv2_train.data.remote_file import RemoteFile
from swinv2_train.data.samples import IMAGE, TEXT_EXTENSIONS, VIDEO, LeftOut, Scope, choice_lines
from swinv2_train.data.shard import Shard
from swinv2_train.data.shard_files import ShardFiles, read_member
from swinv2_train.data.shard_parts import Part, ShardParts
from swinv2_train.data.shard_table import ShardTable
from swinv2_train.data.tar import BLOCK
from swinv2_train.data.video_facts import MEMBER as VIDEO_FACTS
from swinv2_train.text import counted

logger = logging.getLogger(__name__)
_MAX_PART_FILES = 4096  # about 2 MB
_MAX_OPEN_BY_THREAD = 4
"""Shards, and rows of indexes, that are open at a time."""
IMAGE_AND_TEXTS = (IMAGE, *TEXT_EXTENSIONS)
"""Members that packing and inspecting read."""


class ShardSet:
    """Random access to the samples of many shards, local or remote.

    Safe to use after a fork (descriptors are read with `pread`) and to send to another process. Not safe to read from
    two threads at a time.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        card: Card | None,
        cache: ShardCache,
        image: str | None = None,
        scope: Scope = Scope(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.image = image.lower().lstrip(".") if image else None
        """Extension of the member that is read as the image, if it was chosen."""
        self.scope = scope
        """Samples and members that the indexes must have: all members once another than images and texts was read."""
        self.shards = ShardTable(shard for shard in shards if shard.num_samples)
        self.empty = [shard for shard in shards if not shard.num_samples]
        """Shards without samples; they are not part of `shards`."""
        self.card, self.cache = card, cache
        self.label_member = MEMBER if card is not None and card.label_maps is not None else None
        """Member that is a label map, and therefore never the image; None: unknown."""
        self.parts = ShardParts(self.shards)
        """Samples of remote shards that are fetched together."""
        self.num_samples = int(self.shards.num_samples.sum())
        self.remote = self.shards.any_remote
        self._files = ShardFiles(self.shards, cache, scope)
        self._part_files: OrderedDict[tuple[int, int, int], RemoteFile] = OrderedDict()
        """By shard, first sample, and end: places of the parts that were read last."""
        self._prefetcher: Prefetcher[Part] | None = None

    @property
    def shard_sizes(self) -> list[int]:
        """Number of samples of every shard."""
        return self.shards.num_samples.tolist()

    @classmethod
    def open(
        cls,
        spec: Any,
        cache_dir: str | Path = "~/.cache/swinv2_train/shards",
        cache_gib: float = 50.0,
        *,
        retries: int = 7,
        backoff: float = 0.5,
        warn: bool = True,
        image: str | None = None,
        main: str = IMAGE,
    ) -> ShardSet:
        """Find the shards that `spec` names and count their samples.

        Shards packed by swinv2-data are counted from their manifest, others from their index, which is built on first
        sight: next to the tar, or under `cache_dir` if that is read-only.

        Args:
            retries, backoff: for remote reads; seconds, doubled each time.
            warn: log `warnings()`, for callers that do not report them.
            image: extension of the member to read of samples with several images, such as left.png; see
                `Scope.main_extension`.
            main: kind of member that makes a sample: image or video.

        Raises:
            DataError: if a shard is missing or is not a tar, no shard has a sample, or videos cannot be decoded.
        """
        if main == VIDEO:
            load_av()
        every = main != IMAGE or (image is not None and is_array(image.lower()))
        scope = Scope(main, all_members=every)  # earlier versions wrote no indexes of videos
        cache = ShardCache(Path(cache_dir), int(cache_gib * 2**30), retries=retries, backoff=backoff)
        opened = cls(*find_shards(spec, cache, scope), cache, image, scope)
        for line in opened.warnings() if warn else ():
            logger.warning("%s", line)
        return opened

    def warnings(self) -> list[str]:
        """Return a line for each shard that ends early or is empty, and for each kind of members that are not read."""
        shards = list(self.shards)
        lines = [
            f"{shard.url} is cut off ({shard.truncated}): its {counted(shard.num_samples, 'complete sample')} are used"
            for shard in shards
            if shard.truncated
        ]
        if self.empty:
            skipped = f"{len(self.empty)} of {len(self.empty) + len(shards)} shards skipped"
            lines.append(f"{skipped} because they are empty: {self.empty[0].empty}")
        left_out = LeftOut()
        for shard in shards:
            left_out.merge(shard.left_out or LeftOut(), shard.name)
        unchosen = self.image is None
        if not unchosen:
            left_out.counts.pop("shared key", None)  # chosen, not lost
        for number, shard in enumerate(shards if unchosen else ()):
            if shard.left_out is not None and shard.left_out.images:
                several = self.several_images(number)
                lines += [f"{shard.name}: {line}" for line in choice_lines(several, None, self.scope)]
                if not several and self.label_member is not None:
                    left_out.counts.pop("shared key", None)  # label maps, which are read
                break  # one shard shows the choice; swinv2-data inspect counts all of them
        return lines + [f"not read: {line}" for line in left_out.lines(lost_only=True)]

    def left_out(self, shard: int) -> LeftOut:
        """Return the counts of the members of a shard that are not read."""
        counted = self._files.index(shard).left_out
        if counted is None:  # the index is of an earlier version
            with self._descriptor(shard) as fd:
                counted = build_index(self.shards[shard].url, fd, scope=self.scope).left_out
        counted = LeftOut(dict(counted.counts)) if counted else LeftOut()
        if self.image is not None:
            counted.counts.pop("shared key", None)
        if self.label_member is not None:
            counted.remove(self.label_member)
            if not self.several_images(shard):
                counted.counts.pop("shared key", None)
        if self.card is not None and self.card.objects is not None:
            counted.remove(OBJECTS)
        if self.scope.main == VIDEO:
            counted.remove(VIDEO_FACTS)
        return counted

    def several_images(self, shard: int) -> Counter[tuple[str, ...]]:
        """Count the samples of a shard with several images (or videos), by the extensions of these."""
        found = self._files.index(shard).several_mains()
        images: Counter[tuple[str, ...]] = Counter()
        for extensions, count in found.items():
            images[tuple(one for one in extensions if one != self.label_member)] += count
        return Counter({extensions: count for extensions, count in images.items() if len(extensions) > 1})

    def members_without(self, name: str) -> list[str] | None:
        """Return all members of the samples, if none of them has one of this name; None if one may have it.

        The indexes decide, all of them only if the member is missing in the first.
        """
        found: dict[str, None] = {}
        for number in range(len(self.shards)):
            found.update(dict.fromkeys(self._files.rows(number).extensions))
            left_out = self.shards[number].left_out
            if left_out is None and not self.scope.contains(name):
                return None  # the index is of an earlier version
            others = left_out.other_members() if left_out else []
            if name in found:
                return None
            if not self.scope.contains(name) and name.rpartition(".")[2] in others:
                return None  # only the last part of these names is recorded
            found.update(dict.fromkeys(others))
        return sorted(found)

    @property
    def of_arrays(self) -> bool:
        """True if the images are arrays of NumPy, as far as the first sample shows."""
        return is_array(self.image or self._main_of(self._files.row(0, 0)[1]))

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and sample inside it."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        return self.parts.locate(index)

    def key(self, index: int) -> str:
        """Return the name of a sample in its shard."""
        return self._files.row(*self.locate(index))[0]

    def name(self, index: int) -> str:
        """Return a sample's shard and key, for messages."""
        return f"{self.shards[self.locate(index)[0]].name}/{self.key(index)}"

    @property
    def unverified(self) -> bool:
        """True if the first shard is remote and its index has no checksums, though its manifest has its hash."""
        file = self.shards.file(0)
        return file is not None and bool(file.sha256) and not self._files.rows(0).checksums(0)

    def image_size(self, index: int) -> int:
        """Return the bytes of a sample's image. Raises BrokenSample if it has none of the chosen name."""
        members = self._files.row(*self.locate(index))[1]
        return members[self._main_of(members)][1]

    def read(self, index: int, members: Sequence[str] = (IMAGE,)) -> RawSample:
        """Return one sample with those of the named members that it has; nothing else is read from the shard.

        Args:
            members: extensions, such as seg.png or json. `image` (in a set of videos `video`) is the main member.

        Raises:
            BrokenSample: if the shard cannot deliver them.
            DataError: if the shard itself is gone.
        """
        shard, sample = self.locate(index)
        self.declare(members)
        if self.shards.is_remote(shard):
            return self._read_remote(shard, sample, members)
        return self._read_members(self._files.local(shard), 0, *self._files.row(shard, sample), members)

    def _read_remote(self, shard: int, sample: int, members: Sequence[str]) -> RawSample:
        """Read a sample from a copy of its part. Data that differ from what was packed are fetched again, once."""
        for last in (False, True):
            # Opened again each time: a kept descriptor would keep the space of a copy that the cache has thrown out.
            fd, start = self._copy(shard, sample, members)
            try:
                raw = self._read_members(fd, start, *self._files.row(shard, sample), members)
                wrong = self._other_bytes(shard, sample, raw)
                if wrong is None:
                    break
                self._discard(shard, sample, fd, wrong, last=last)
            finally:
                os.close(fd)
        return raw

    def _read_members(
        self, fd: int, start: int, key: str, places: Mapping[str, tuple[int, int]], members: Sequence[str]
    ) -> RawSample:
        """Read members of a sample from an open file that starts at byte `start` of the shard."""
        main = self._main_of(places)
        found = {}
        for name in members:
            place = places.get(main if name == self.scope.main else name)
            if place is not None:
                found[name] = read_member(fd, place[0] - start, place[1])
        return RawSample(key, main, found, self.scope.main)

    def _other_bytes(self, shard: int, sample: int, raw: RawSample) -> str | None:
        """Return the first member of a remote sample whose data is not what was packed; None without one."""
        sums = self._files.rows(shard).checksums(sample)
        for name, data in raw.members.items():
            extension = raw.extension if name == raw.kind else name
            if sums and zlib.crc32(data) != sums[extension]:
                return f"{raw.key}.{extension}"
        return None

    def _discard(self, shard: int, sample: int, fd: int, member: str, *, last: bool) -> None:
        """Remove the copy that a descriptor refers to, so that it is fetched again.

        Raises:
            DataError: if `last`, because it already was.
        """
        file = self._file(shard, sample)
        for copied in (file, file.whole):
            self.cache.discard(copied, fd)
        # The index may be the old one of a shard that was replaced on a server that reports no version.
        self._files.fetch_index_again(shard)
        self._part_files.clear()
        if last:
            raise DataError(
                f"{file.url}: the bytes of {member} are not those that were packed (their checksum differs), also when "
                "asked again; upload the shard and its index again, or ask what a proxy on the way changes"
            )
        logger.warning("%s: the bytes of %s are not those that were packed; fetching them again", file.url, member)

    def declare(self, members: Sequence[str]) -> None:
        """Have these members found from now on, whatever they are.

        Indexes of images and texts are forgotten if they lack one; each shard is indexed again when it is next read, or
        was before.
        """
        if self.scope.all_members or all(name == self.scope.main or self.scope.contains(name) for name in members):
            return
        self.scope = self._files.scope = replace(self.scope, all_members=True)
        self._files.forget_indexes()
        self._part_files.clear()

    def choices(self) -> list[str]:
        """Return a line for each kind of sample with several images, over all shards; see `choice_lines`."""
        several: Counter[tuple[str, ...]] = Counter()
        for shard in range(len(self.shards)):
            several.update(self.several_images(shard))
        return choice_lines(several, self.image, self.scope)

    def _main_of(self, members: Collection[str]) -> str:
        """Return the extension of the member that is read as the image. Raises BrokenSample if there is none, or the
        chosen one is missing."""
        if self.image is None:
            extension = self.scope.main_extension(tuple(one for one in members if one != self.label_member))
            if extension is None and self.label_member in members:
                raise BrokenSample(f"it has no image, only the label map {self.label_member}")
            if extension is None:  # it was indexed with a decoder that is not here
                raise BrokenSample(f"no decoder for {', '.join(members)}; --import the module that has it")
            return extension
        if self.image not in members or not (self.scope.is_main(self.image) or is_array(self.image)):
            images = ", ".join(self.scope.mains(tuple(members)))
            raise BrokenSample(f"it has no image {self.image} (data.image, --image), only {images}")
        return self.image

    def prefetch(
        self, ranges: Callable[[], Sequence[tuple[int, int]]], *, connections: int = 1, share: float = 1.0
    ) -> None:
        """Fetch the remote samples of half-open ranges in the background, in this order.

        A later call replaces an earlier request. Local shards are skipped.

        Args:
            ranges: called in the background.
            connections: requests at a time; those of the first call count.
            share: part of the cache that they may fill; what is beyond it is fetched when it is read.
        """
        if not self.remote:
            return
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._fetcher, connections)
        self._prefetcher.want(lambda: self.parts.of(ranges(), share * self.cache.max_bytes))

    @contextlib.contextmanager
    def _fetcher(self) -> Iterator[Callable[[Part, Callable[[], bool]], None]]:
        """Yield a function that fetches a part; for one thread, so it has files of its own."""
        own = copy.copy(self)
        own._files, own._part_files = copy.copy(self._files), OrderedDict()
        own._files.most_open = _MAX_OPEN_BY_THREAD

        def fetch(part: Part, stopped: Callable[[], bool]) -> None:
            file = own._file(*part)
            try:
                own.cache.fetch(file, stopped)
            except NoPartsError:
                own.cache.fetch(file.whole, stopped)

        try:
            yield fetch
        finally:
            own._files.close()

    def close(self) -> None:
        """Stop reading ahead and close all files; the set can still be read afterwards."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        self._files.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prefetcher": None}

    def _copy(self, shard: int, sample: int, members: Iterable[str]) -> tuple[int, int]:
        """Open the copy of the part that has a sample; if its members are elsewhere, compare it with its index first.

        Every read checks its own members, so that no process has to check an entire copy for a few of its samples.

        Returns:
            A descriptor, and the byte of the shard at which the copy starts.
        """
        key, places = self._files.row(shard, sample)
        truncated = self._files.rows(shard).truncated
        mains = (*self.scope.mains(tuple(places)), self.image) if self.scope.main in members else ()
        read = {name for name in places if name in members or name in mains}
        fd, file = self._open_part(self._file(shard, sample))
        if all(
            misplaced_member(fd, key, name, places[name], truncated=truncated, start=file.start) is None
            for name in sorted(read)
        ):
            return fd, file.start
        os.close(fd)
        before = self._files.index(shard)
        fd, file, index = open_copy(file, before, self.cache)
        if index.num_samples != self.shards.num_samples[shard]:
            os.close(fd)
            raise self._files.changed(shard, index.num_samples)
        if index is not before:
            self._files.replace_index(shard, index, file.whole)
            self._part_files.clear()
        return fd, file.start

    def _open_part(self, file: RemoteFile) -> tuple[int, RemoteFile]:
        """Open the copy of a part, or of its shard if that is there: it may have been fetched to be indexed."""
        for copied in (file, file.whole):
            fd = self.cache.open_cached(copied)
            if fd is not None:
                return fd, copied
        try:
            return self.cache.open(file), file
        except NoPartsError:
            return self.cache.open(file.whole), file.whole

    def _file(self, shard: int, sample: int) -> RemoteFile:
        """Return the part of a remote shard that has a sample; the entire shard if parts cannot be had."""
        first, last = self.parts.around(shard, sample)
        place = shard, first, last
        if place not in self._part_files:
            file = self.shards.file(shard)
            assert file is not None
            if (last < self.shards.num_samples[shard] or first) and self.cache.has_parts(file):
                stop = self._first_byte(shard, last) if last < self.shards.num_samples[shard] else file.size
                file = file.part(self._first_byte(shard, first), stop)
            self._part_files[place] = file
            while len(self._part_files) > _MAX_PART_FILES:
                self._part_files.popitem(last=False)
        self._part_files.move_to_end(place)
        return self._part_files[place]

    def _first_byte(self, shard: int, sample: int) -> int:
        """Return where a sample starts in the tar, with the header of its first member; 0 for the first sample."""
        return min(offset for offset, _ in self._files.row(shard, sample)[1].values()) - BLOCK if sample else 0

    @contextlib.contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        file = self.shards.file(shard)
        fd = self._files.local(shard) if file is None else self.cache.open(file)
        try:
            yield fd
        finally:
            if file is not None:
                os.close(fd)
