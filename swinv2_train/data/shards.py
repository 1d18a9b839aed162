"""A set of shards as one array of samples: `shards.read(index)`."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.card import Card
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.index import ShardIndex, build_index
from swinv2_train.data.index_store import load_index, open_copy
from swinv2_train.data.prefetch import Prefetcher
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.remote import NoPartsError, RemoteFile, ShardCache
from swinv2_train.data.samples import IMAGE, TEXT_EXTENSIONS, LeftOut, Scope
from swinv2_train.data.shard import Shard, manifests_of, open_shard
from swinv2_train.data.sources import expand, manifest_url

logger = logging.getLogger(__name__)
_MAX_OPEN_FILES = 64
_MAX_INDEXED_SAMPLES = 1_000_000  # in memory at a time: about 50 to 150 MB
_MAX_CHECKED = 10_000  # copies that are remembered as checked: about 1 MB
PART_SAMPLES = 16
"""Default number of remote samples that are fetched by one request: 1 to 2 MB of photographs of 500 x 400 pixels."""
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
        self.shards = [shard for shard in shards if shard.num_samples]
        self.empty = [shard for shard in shards if not shard.num_samples]
        """Shards without samples; they are not part of `shards`."""
        self.card, self.cache = card, cache
        self.shard_sizes = [shard.num_samples for shard in self.shards]
        self._ends = np.cumsum(np.array(self.shard_sizes, dtype=np.int64))
        self.num_samples = int(self._ends[-1])
        self.remote = any(shard.file is not None for shard in self.shards)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self.part_samples = PART_SAMPLES
        """Remote samples in a row that are fetched by one request."""
        self._prefetcher: Prefetcher[tuple[int, int]] | None = None
        self._checked: OrderedDict[RemoteFile, int] = OrderedDict()
        """Inodes of the copies that were compared with the index of their shard, the last ones that were read."""

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
        cache = ShardCache(Path(cache_dir).expanduser(), int(cache_gib * 2**30), retries=retries, backoff=backoff)
        try:
            urls = expand(spec, cache)
            manifests = manifests_of(urls, cache)
            with ThreadPoolExecutor(8) as pool:
                shards = list(
                    pool.map(lambda url: open_shard(url, manifests.get(manifest_url(url)), cache, scope), urls)
                )
        except FileNotFoundError as error:
            raise DataError(f"{error.filename or error} does not exist") from None
        except PermissionError as error:
            raise DataError(f"{error.filename} may not be read") from None
        if not any(shard.num_samples for shard in shards):
            raise DataError(shards[0].empty)
        described = {place: manifest for place, manifest in manifests.items() if manifest is not None}
        covered = all(manifest_url(url) in described for url in urls)
        card = Card.merged(Card.from_json(manifest.card) for manifest in described.values()) if covered else None
        opened = cls(shards, card, cache, image, scope)
        for line in opened.warnings() if warn else ():
            logger.warning("%s", line)
        return opened

    def warnings(self) -> list[str]:
        """Return a line for each shard that ends early or is empty, and for each kind of members that are not read."""
        lines = [
            f"{shard.url} is cut off ({shard.truncated}): its {shard.num_samples} complete samples are used"
            for shard in self.shards
            if shard.truncated
        ]
        if self.empty:
            skipped = f"{len(self.empty)} of {len(self.empty) + len(self.shards)} shards skipped"
            lines.append(f"{skipped} because they are empty: {self.empty[0].empty}")
        left_out = LeftOut()
        for shard in self.shards:
            left_out.merge(shard.left_out or LeftOut(), shard.name)
        unchosen = self.image is None
        if not unchosen:
            left_out.counts.pop("shared key", None)  # chosen, not lost
        for shard, entry in enumerate(self.shards if unchosen else ()):
            if entry.left_out is not None and entry.left_out.images:
                lines += [
                    f"{entry.name}: {line}" for line in choice_lines(self.several_images(shard), None, self.scope)
                ]
                break  # one shard shows the choice; swinv2-data inspect counts all of them
        return lines + [f"not read: {line}" for line in left_out.lines(lost_only=True)]

    def left_out(self, shard: int) -> LeftOut:
        """Return the counts of the members of a shard that are not read."""
        counted = self._index(shard).left_out
        if counted is None:  # the index is of an earlier version
            with self._descriptor(shard) as (fd, _):
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
        return shard, index - int(self._ends[shard]) + self.shard_sizes[shard]

    def key(self, index: int) -> str:
        """Return the name of a sample in its shard."""
        shard, sample = self.locate(index)
        return self._index(shard).keys[sample]

    def name(self, index: int) -> str:
        """Return a sample's shard and key, for messages."""
        return f"{self.shards[self.locate(index)[0]].name}/{self.key(index)}"

    def image_size(self, index: int) -> int:
        """Return the bytes of a sample's image. Raises BrokenSample if it has none of the chosen name."""
        shard, sample = self.locate(index)
        members = self._index(shard).members(sample)
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
        with self._descriptor(shard, sample) as (fd, start):
            shard_index = self._index(shard)  # after opening, which may find that it is of another shard
            places = shard_index.members(sample)
            extension = self._main_of(places)
            places[self.scope.main] = places[extension]
            wanted = {name: places[name] for name in members if name in places}
            found = {name: _pread(fd, offset - start, size) for name, (offset, size) in wanted.items()}
        return RawSample(shard_index.keys[sample], extension, found, self.scope.main)

    def _index_all_members(self) -> None:
        """Forget the indexes that lack members; each shard is indexed again when it is next read, or was before."""
        self.scope = replace(self.scope, all_members=True)
        self._indexes.clear()
        self._checked.clear()  # a copy is compared with the index that is used

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

    def prefetch(self, ranges: Sequence[tuple[int, int]], *, connections: int = 1, share: float = 1.0) -> None:
        """Fetch the remote samples of half-open ranges in the background, in this order.

        A later call replaces an earlier request. Local shards are skipped.

        Args:
            connections: requests at a time; those of the first call count.
            share: part of the cache that they may fill; what is beyond it is fetched when it is read.
        """
        if not self.remote:
            return
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._fetcher, connections)
        room = share * self.cache.max_bytes
        wanted: dict[tuple[int, int], None] = {}
        for start, stop in ranges:
            while start < stop and room > 0:
                shard, sample = self.locate(start)
                first, last = self._part(shard, sample)
                if self.shards[shard].file is not None and (shard, first) not in wanted:
                    room -= self.mean_bytes(shard) * (last - first)
                    wanted[shard, first] = None
                start += last - sample
        self._prefetcher.want(list(wanted)[: None if room >= 0 else -1])

    def num_bytes(self, ranges: Sequence[tuple[int, int]]) -> float:
        """Return about how many bytes the remote samples of half-open ranges have."""
        total = 0.0
        for start, stop in ranges:
            while start < stop:
                shard, sample = self.locate(start)
                count = min(stop - start, self.shard_sizes[shard] - sample)
                total += self.mean_bytes(shard) * count if self.shards[shard].file is not None else 0
                start += count
        return total

    def mean_bytes(self, shard: int) -> float:
        """Return the mean size of a sample of a shard in bytes."""
        return self.shards[shard].size / self.shard_sizes[shard]

    def _fetcher(self) -> Callable[[tuple[int, int], Callable[[], bool]], None]:
        """Return a function that fetches the part at (shard, sample); for one thread, which gets files of its own."""
        own = copy.copy(self)

        def fetch(place: tuple[int, int], stopped: Callable[[], bool]) -> None:
            file = own._file(*place)
            with contextlib.suppress(NoPartsError):
                own.cache.fetch(file, stopped)
                return
            own.cache.fetch(file.whole, stopped)

        return fetch

    def close(self) -> None:
        """Stop reading ahead and close all files; the set can still be read afterwards."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_indexes": OrderedDict(), "_prefetcher": None}

    @contextlib.contextmanager
    def _descriptor(self, shard: int, sample: int | None = None) -> Iterator[tuple[int, int]]:
        """Open a shard, or the part of a remote one that has a sample; return the descriptor and its first byte."""
        entry = self.shards[shard]
        if entry.file is not None:
            # Opened again each time: a kept descriptor would keep the space of a copy that the cache has thrown out.
            fd, start = self._copy(shard, sample)
            try:
                yield fd, start
            finally:
                os.close(fd)
            return
        if shard not in self._files:
            try:
                self._files[shard] = os.open(entry.url, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"{entry.url} can no longer be read ({error.strerror})") from None
            while len(self._files) > _MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        yield self._files[shard], 0

    def _copy(self, shard: int, sample: int | None) -> tuple[int, int]:
        """Open the local copy of a shard or of a part; each new copy is compared with the index before it is read."""
        whole = self.shards[shard].file
        assert whole is not None
        file = whole if sample is None else self._file(shard, sample)
        # A shard that was fetched whole, to index it, may still be there.
        fd = self.cache.open_cached(whole) if file != whole else None
        if fd is not None:
            file = whole
        else:
            try:
                fd = self.cache.open(file)
            except NoPartsError:
                return self._copy(shard, None)
        if self._checked.get(file) != os.fstat(fd).st_ino:
            os.close(fd)
            fd, file, index = open_copy(file, self._index(shard), self.cache)
            if index.num_samples != self.shards[shard].num_samples:
                os.close(fd)
                raise self._changed(shard, index)
            self._indexes[shard] = index
            self._checked[file] = os.fstat(fd).st_ino
            while len(self._checked) > _MAX_CHECKED:
                self._checked.popitem(last=False)
        self._checked.move_to_end(file)
        return fd, file.start

    def _file(self, shard: int, sample: int) -> RemoteFile:
        """Return the part of a remote shard that has a sample; the entire shard if parts cannot be had."""
        file = self.shards[shard].file
        assert file is not None
        if not self.cache.parts:
            return file
        first, last = self._part(shard, sample)
        if (first, last) == (0, self.shard_sizes[shard]):
            return file
        index = self._index(shard)
        return file.part(index.first_byte(first), file.size if last == index.num_samples else index.first_byte(last))

    def _part(self, shard: int, sample: int) -> tuple[int, int]:
        """Return the samples of a shard that are fetched together with one of them, as a half-open range.

        The set is cut every `part_samples` samples, and between shards.
        """
        before, size = int(self._ends[shard]) - self.shard_sizes[shard], self.shard_sizes[shard]
        first = (before + sample) // self.part_samples * self.part_samples - before
        return max(first, 0), min(first + self.part_samples, size)

    def _changed(self, shard: int, index: ShardIndex) -> DataError:
        entry = self.shards[shard]
        return DataError(
            f"{entry.url} holds {index.num_samples} samples where {entry.num_samples} were counted before: "
            "it was changed; rerun swinv2-data pack or start over"
        )

    def _index(self, shard: int) -> ShardIndex:
        if shard not in self._indexes:
            entry = self.shards[shard]
            try:
                index = load_index(entry.url, self.cache, entry.file, self.scope)
            except OSError as error:
                raise DataError(f"{entry.url} can no longer be read ({error.strerror})") from None
            if index.num_samples != entry.num_samples:
                raise self._changed(shard, index)
            self._indexes[shard] = index
            while len(self._indexes) > 1 and self._indexed_samples() > _MAX_INDEXED_SAMPLES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(shard)
        return self._indexes[shard]

    def _indexed_samples(self) -> int:
        return sum(index.num_samples for index in self._indexes.values())


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
