"""A set of shards as one array of samples: `shards.read(index)`."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.card import Card
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.index import ShardIndex, build_index, misplaced_member
from swinv2_train.data.index_rows import IndexRows
from swinv2_train.data.index_store import load_index, open_copy, open_rows, store_rows
from swinv2_train.data.opening import find_shards
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.remote import Prefetcher, RemoteFile, ShardCache
from swinv2_train.data.samples import IMAGE, TEXT_EXTENSIONS, LeftOut, Scope
from swinv2_train.data.shard import Shard
from swinv2_train.data.shard_table import ShardTable
from swinv2_train.reading import UnreadableError

logger = logging.getLogger(__name__)
_MAX_OPEN_FILES = 64
"""Shards, and rows of indexes, that are open at a time."""
_MAX_ROW_BYTES = 8 << 20
"""Bytes of the rows that are kept in memory, because they can be stored nowhere."""
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
        self._ends = np.cumsum(self.shards.num_samples)
        self.num_samples = int(self._ends[-1])
        self.remote = self.shards.any_remote
        self._files: OrderedDict[int, int] = OrderedDict()
        self._rows: OrderedDict[int, IndexRows] = OrderedDict()
        self._index_of: tuple[int, ShardIndex] | None = None
        """Number and index of the last shard whose entire index was needed."""
        self._prefetcher: Prefetcher | None = None

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
            DataError: if a shard is missing or is not a tar, or no shard has a sample.
        """
        scope = Scope(main, all_members=main != IMAGE)  # earlier versions wrote no indexes of videos
        cache = ShardCache(Path(cache_dir), int(cache_gib * 2**30), retries=retries, backoff=backoff)
        opened = cls(*find_shards(spec, cache, scope), cache, image, scope)
        for line in opened.warnings() if warn else ():
            logger.warning("%s", line)
        return opened

    def warnings(self) -> list[str]:
        """Return a line for each shard that ends early or is empty, and for each kind of members that are not read."""
        shards = list(self.shards)
        lines = [
            f"{shard.url} is cut off ({shard.truncated}): its {shard.num_samples} complete samples are used"
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
                lines += [
                    f"{shard.name}: {line}" for line in choice_lines(self.several_images(number), None, self.scope)
                ]
                break  # one shard shows the choice; swinv2-data inspect counts all of them
        return lines + [f"not read: {line}" for line in left_out.lines(lost_only=True)]

    def left_out(self, shard: int) -> LeftOut:
        """Return the counts of the members of a shard that are not read."""
        counted = self._index(shard).left_out
        if counted is None:  # the index is of an earlier version
            with self._descriptor(shard) as fd:
                counted = build_index(self.shards[shard].url, fd, scope=self.scope).left_out
        counted = LeftOut(dict(counted.counts)) if counted else LeftOut()
        if self.image is not None:
            counted.counts.pop("shared key", None)
        return counted

    def several_images(self, shard: int) -> Counter[tuple[str, ...]]:
        """Count the samples of a shard with several {scope.main}s (or videos), by the extensions of these."""
        index = self._index(shard)
        rows = [i for i, extension in enumerate(index.extensions) if self.scope.is_main(extension)]
        present = index.offsets[rows] >= 0
        counts: Counter[tuple[str, ...]] = Counter()
        for column in np.flatnonzero(present.sum(axis=0) > 1):
            counts[tuple(index.extensions[i] for i in np.array(rows)[present[:, column]])] += 1
        return counts

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and sample inside it."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard]) + int(self.shards.num_samples[shard])

    def key(self, index: int) -> str:
        """Return the name of a sample in its shard."""
        return self._row(*self.locate(index))[0]

    def name(self, index: int) -> str:
        """Return a sample's shard and key, for messages."""
        return f"{self.shards[self.locate(index)[0]].name}/{self.key(index)}"

    def image_size(self, index: int) -> int:
        """Return the bytes of a sample's image. Raises BrokenSample if it has none of the chosen name."""
        members = self._row(*self.locate(index))[1]
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
        if not self.scope.all_members and not all(
            name == self.scope.main or self.scope.contains(name) for name in members
        ):
            self._index_all_members()
        with self._opened(shard, sample, members) as (fd, key, places):
            extension = self._main_of(places)
            names = {name: extension if name == self.scope.main else name for name in members}
            found = {name: _pread(fd, *places[names[name]]) for name in members if names[name] in places}
        return RawSample(key, extension, found, self.scope.main)

    def _index_all_members(self) -> None:
        """Forget the indexes that lack members; each shard is indexed again when it is next read, or was before."""
        self.scope = replace(self.scope, all_members=True)
        self._forget_indexes()

    def choices(self) -> list[str]:
        """Return a line for each kind of sample with several images, over all shards; see `choice_lines`."""
        several: Counter[tuple[str, ...]] = Counter()
        for shard in range(len(self.shards)):
            several.update(self.several_images(shard))
        return choice_lines(several, self.image, self.scope)

    def _main_of(self, members: Collection[str]) -> str:
        """Return the extension of the member that is read as the image. Raises BrokenSample if the chosen one is
        missing."""
        if self.image is None:
            extension = self.scope.main_extension(list(members))
            assert extension is not None  # an index lists only samples with a main member
            return extension
        if self.image not in members or not self.scope.is_main(self.image):
            images = ", ".join(name for name in members if self.scope.is_main(name))
            raise BrokenSample(f"it has no image {self.image} (data.image, --image), only {images}")
        return self.image

    def prefetch(self, shard_ids: Sequence[int]) -> None:
        """Fetch these remote shards in the background, in this order, as far as they fit into the cache together.

        A later call replaces an earlier request. Local shards are skipped.
        """
        if not self.remote:
            return
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self.cache)
        files = [self.shards.file(i) for i in shard_ids]
        self._prefetcher.want([file for file in files if file is not None])

    def shards_of(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Return the shards that half-open ranges of sample indices touch, each once, in the order of the ranges."""
        touched: dict[int, None] = {}
        for start, stop in ranges:
            touched.update(dict.fromkeys(range(self.locate(start)[0], self.locate(stop - 1)[0] + 1)))
        return list(touched)

    def close(self) -> None:
        """Stop reading ahead and close all files; the set can still be read afterwards."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        while self._files:
            os.close(self._files.popitem()[1])
        self._forget_indexes()

    def _forget_indexes(self) -> None:
        self._index_of = None
        while self._rows:
            self._rows.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_rows": OrderedDict(), "_index_of": None, "_prefetcher": None}

    @contextlib.contextmanager
    def _opened(
        self, shard: int, sample: int, members: Iterable[str]
    ) -> Iterator[tuple[int, str, dict[str, tuple[int, int]]]]:
        """Yield a descriptor of a shard, and key and members (extension -> offset, size) of one of its samples.

        Args:
            members: those that will be read. In a copy of a remote shard they are compared with the index first.
        """
        file = self.shards.file(shard)
        if file is None:
            fd = self._local(shard)
            yield fd, *self._row(shard, sample)
            return
        # Opened again each time: a kept descriptor would keep the space of a copy that the cache has thrown out.
        fd = self._copy(shard, file, sample, members)
        try:
            yield fd, *self._row(shard, sample)
        finally:
            os.close(fd)

    def _copy(self, shard: int, file: RemoteFile, sample: int, members: Iterable[str]) -> int:
        """Open the copy of a remote shard; if the members of a sample are elsewhere, compare it with its index first.

        Every read checks its own members, so that no process has to check an entire copy for a few of its samples.
        """
        key, places = self._row(shard, sample)
        truncated = self._rows[shard].truncated
        read = {name for name in places if name in members or (self.scope.main in members and self.scope.is_main(name))}
        fd = self.cache.open(file)
        if all(misplaced_member(fd, key, name, places[name], truncated) is None for name in sorted(read)):
            return fd
        os.close(fd)
        before = self._index(shard)
        fd, index = open_copy(file, before, self.cache)
        if index.num_samples != self.shards.num_samples[shard]:
            os.close(fd)
            raise self._changed(shard, index.num_samples)
        if index is not before:
            self._index_of = (shard, index)
            self._keep_rows(shard, store_rows(index, file.url, self.cache, file))
        return fd

    @contextlib.contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        file = self.shards.file(shard)
        fd = self._local(shard) if file is None else self.cache.open(file)
        try:
            yield fd
        finally:
            if file is not None:
                os.close(fd)

    def _local(self, shard: int) -> int:
        """Return the descriptor of a local shard, kept open for further samples."""
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self.shards[shard].url, os.O_RDONLY)
            except OSError as error:
                raise self._unreadable(shard, error) from None
            while len(self._files) > _MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _unreadable(self, shard: int, error: OSError) -> DataError:
        return DataError(
            f"{self.shards[shard].url} can no longer be read on {socket.gethostname()} ({error.strerror}): every host "
            "needs all shards under the same path"
        )

    def _changed(self, shard: int, now: int) -> DataError:
        entry = self.shards[shard]
        return DataError(
            f"{entry.url} holds {now} samples where {entry.num_samples} were counted before: "
            "it was changed; rerun swinv2-data pack or start over"
        )

    def _row(self, shard: int, sample: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Return key and members of a sample, from its row of the index alone."""
        if shard not in self._rows:
            self._keep_rows(shard, self._open_rows(shard))
        self._rows.move_to_end(shard)
        try:
            return self._rows[shard].sample(sample)
        except UnreadableError as error:
            entry = self.shards[shard]
            logger.warning("making the rows of the index of %s again (%s)", entry.url, error)
            self._keep_rows(shard, store_rows(self._index(shard), entry.url, self.cache, entry.file))
            return self._rows[shard].sample(sample)

    def _open_rows(self, shard: int) -> IndexRows:
        entry = self.shards[shard]
        try:
            tar = os.fstat(self._local(shard)) if entry.file is None else None
            rows = open_rows(entry.url, self.cache, entry.file, self.scope, tar)
        except OSError as error:
            raise self._unreadable(shard, error) from None
        if rows.num_samples != entry.num_samples:
            rows.close()
            raise self._changed(shard, rows.num_samples)
        return rows

    def _keep_rows(self, shard: int, rows: IndexRows) -> None:
        """Keep rows open, in place of those that were used least recently."""
        if shard in self._rows:
            self._rows.pop(shard).close()
        self._rows[shard] = rows
        while len(self._rows) > 1 and (
            len(self._rows) > _MAX_OPEN_FILES or sum(kept.memory for kept in self._rows.values()) > _MAX_ROW_BYTES
        ):
            self._rows.popitem(last=False)[1].close()

    def _index(self, shard: int) -> ShardIndex:
        """Return the entire index of a shard, for statistics over its samples; `_row` reads single samples."""
        if self._index_of is None or self._index_of[0] != shard:
            entry = self.shards[shard]
            try:
                index = load_index(entry.url, self.cache, entry.file, self.scope)
            except OSError as error:
                raise self._unreadable(shard, error) from None
            if index.num_samples != entry.num_samples:
                raise self._changed(shard, index.num_samples)
            self._index_of = (shard, index)
        return self._index_of[1]


def choice_lines(several: Mapping[tuple[str, ...], int], chosen: str | None, scope: Scope) -> list[str]:
    """Return a line for each set of images that samples have, with the one that is read and how to read another."""
    lines = []
    for extensions, count in sorted(several.items()):
        read = chosen or scope.main_extension(list(extensions))
        others = [extension for extension in extensions if extension != read]
        what = f"{count:,} sample{'s' if count > 1 else ''} with several {scope.main}s ({', '.join(extensions)})"
        another = f"; to read another: data.image={others[0]}" if scope.main == IMAGE else ""
        lines.append(f"{what}: {read} is read{another}")
    return lines


def _pread(fd: int, offset: int, size: int) -> bytes:
    try:
        data = os.pread(fd, size, offset)
    except OSError as error:
        raise BrokenSample(f"the shard cannot be read here ({error.strerror})") from None
    if len(data) < size:
        raise BrokenSample(f"the shard ends {size - len(data)} bytes too early")
    return data
