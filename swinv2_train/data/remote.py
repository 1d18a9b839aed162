"""Remote shards: fetched whole into a local cache of bounded size that all processes of a host share.

The cache is a plain directory. One lock file per shard keeps two processes from fetching the same shard twice; one lock
for the directory keeps the sum of sizes under the bound. A shard that was thrown out while somebody still wanted it is
fetched again, so the bound can cost time but never a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from swinv2_train.data.errors import DataError

logger = logging.getLogger(__name__)
_CHUNK_BYTES = 16 << 20
T = TypeVar("T")


def is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file://")


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL; looked up anew in every process, as its connections do not survive a fork."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be read: {error}") from None


def with_retries(what: str, action: Callable[[], T], *, retries: int, backoff: float) -> T:
    """Call `action` until it succeeds, waiting longer each time.

    Raises FileNotFoundError at once where the server says so, DataError after `retries` further failures.
    """
    for attempt in range(retries + 1):
        try:
            return action()
        except (FileNotFoundError, DataError):
            raise
        except Exception as error:  # every backend of fsspec brings its own; aiohttp's short body is no OSError
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            if attempt == retries:
                raise DataError(f"{what} could not be read after {retries + 1} tries ({reason})") from error
            wait = min(backoff * 2**attempt, 30.0)
            logger.warning("%s: %s; trying again in %.1f s", what, reason, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


class _StoppedError(Exception):
    """Reading ahead was called off."""


class ShardCache:
    """Local copies of remote files under `directory`, least recently used out first beyond `max_bytes`."""

    def __init__(self, directory: Path, max_bytes: int, *, retries: int = 7, backoff: float = 0.5) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self.retries, self.backoff = retries, backoff

    def size(self, url: str) -> int:
        """Bytes of a remote file. Raises FileNotFoundError, or DataError where the server does not say."""
        size = self._retry(url, lambda: _stat(url))
        if size is None:
            raise DataError(f"{url}: the server does not tell the size of the file, which the cache needs")
        return size

    def fetch_bytes(self, url: str) -> bytes | None:
        """A small remote file, whole; None where there is no such file."""

        def read() -> bytes:
            fs, path = filesystem(url)
            return fs.cat_file(path)

        try:
            return self._retry(url, read)
        except FileNotFoundError:
            return None

    def open(self, url: str, size: int) -> int:
        """A descriptor of the local copy, fetched first if it is missing. The caller closes it."""
        while True:
            fd = self._open_cached(url, size)
            if fd is not None:
                return fd
            with self._locked(self._lock_path(url), wait=True):
                if self.touch(url, size):
                    continue  # another process was quicker
                self._fetch(url, size)

    def touch(self, url: str, size: int) -> bool:
        """Whether there is a local copy; if so, it counts as used just now."""
        fd = self._open_cached(url, size)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def fetch(self, url: str, size: int, stopped: Callable[[], bool]) -> None:
        """Have a local copy, unless another process is already fetching it. `stopped` is asked after every chunk."""
        if self.touch(url, size):
            return
        with self._locked(self._lock_path(url), wait=False) as mine:
            if mine and not self.touch(url, size):
                with contextlib.suppress(_StoppedError):
                    self._fetch(url, size, stopped)

    def path(self, url: str) -> Path:
        """Where the copy of a URL lies, if it lies there."""
        return self.directory / f"{_digest(url)}-{url.partition('?')[0].rpartition('/')[2]}"

    def cached_bytes(self) -> int:
        """Bytes of all copies, the unfinished ones at their full size."""
        return sum(size for _, size, _ in self._entries())

    def _open_cached(self, url: str, size: int) -> int | None:
        try:
            fd = os.open(self.path(url), os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(fd).st_size != size:  # the remote file was replaced by another
            os.close(fd)
            self.path(url).unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(fd)  # the time of last use, which decides who goes first
        return fd

    def _fetch(self, url: str, size: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Fetch into a temporary file and rename. The caller holds the lock of the shard."""
        target = self.path(url)
        part = target.with_name(f"{target.name}.part")
        with self._locked(self.directory / ".lock", wait=True):
            part.unlink(missing_ok=True)  # left behind by a process that died
            self._make_room(url, size)
            with part.open("xb") as file:
                file.truncate(size)  # reserves the room: others count it
        try:
            with part.open("r+b") as file:
                position = 0
                while position < size:  # a failure costs one chunk, not the shard
                    stop = min(position + _CHUNK_BYTES, size)
                    position += file.write(self._chunk(url, position, stop, size))
                    if stopped():
                        raise _StoppedError
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _chunk(self, url: str, start: int, stop: int, size: int) -> bytes:
        """Bytes start..stop, or start..end from a server that knows no ranges."""

        def read() -> bytes:
            fs, path = filesystem(url)
            data = fs.cat_file(path, start=start, end=stop)
            if len(data) == stop - start:
                return data
            if len(data) == size:
                return data[start:]
            raise OSError(f"{len(data)} bytes came instead of {stop - start}")

        try:
            return self._retry(url, read)
        except FileNotFoundError:
            raise DataError(f"{url} does not exist any more") from None

    def _make_room(self, url: str, size: int) -> None:
        if size > self.max_bytes:
            raise DataError(
                f"{url} has {size / 2**30:.3g} GiB, more than the cache may hold "
                f"({self.max_bytes / 2**30:.3g}): raise data.cache_gib or pack smaller shards"
            )
        while True:
            entries = sorted(self._entries())
            total = sum(entry[1] for entry in entries)
            for _, entry_size, path in entries:
                if total + size <= self.max_bytes:
                    return
                if path.suffix != ".part" or self._abandoned(path):
                    path.unlink(missing_ok=True)
                    total -= entry_size
            if total + size <= self.max_bytes:
                return
            time.sleep(0.1)  # what is left is being fetched by others, who need no lock of ours to finish

    def _abandoned(self, part: Path) -> bool:
        """Whether nobody is fetching this unfinished copy any more."""
        with self._locked(self._lock_directory / part.name.partition("-")[0], wait=False) as mine:
            return mine

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of every copy."""
        entries = []
        for entry in os.scandir(self.directory):
            if entry.name.startswith(".") or not entry.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        return entries

    @property
    def _lock_directory(self) -> Path:
        return self.directory / ".locks"

    def _lock_path(self, url: str) -> Path:
        return self._lock_directory / _digest(url)

    @contextlib.contextmanager
    def _locked(self, path: Path, *, wait: bool) -> Iterator[bool]:
        """Hold a lock file; without `wait`, yields whether it could be had. The kernel frees it if the process dies."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            mine = True
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                mine = False
            yield mine
        finally:
            os.close(fd)

    def _retry(self, url: str, action: Callable[[], T]) -> T:
        return with_retries(url, action, retries=self.retries, backoff=self.backoff)


def _stat(url: str) -> int | None:
    fs, path = filesystem(url)
    return fs.info(path).get("size")


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:20]


class Prefetcher:
    """One background thread that has wanted shards fetched before they are read."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._wanted: list[tuple[str, int]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="shard-prefetch", daemon=True)
        self._thread.start()

    def want(self, shards: Sequence[tuple[str, int]]) -> None:
        """Fetch these (url, bytes) in order, as far as they fit into the cache together."""
        chosen, total = [], 0
        for url, size in shards:
            total += size
            if total > self._cache.max_bytes:
                break
            chosen.append((url, size))
        # What is there already must not be thrown out to make room for the rest.
        chosen = [(url, size) for url, size in chosen if not self._cache.touch(url, size)]
        with self._changed:
            self._wanted = chosen
            self._changed.notify()

    def close(self) -> None:
        """Stop after the chunk that is under way; a server that hangs is not waited for."""
        with self._changed:
            self._closed = True
            self._wanted = []
            self._changed.notify()
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                url, size = self._wanted.pop(0)
            try:
                self._cache.fetch(url, size, lambda: self._closed)
            except Exception as error:  # whoever reads the shard meets the same error and ends the run with it
                logger.warning("reading ahead: %s", error)
