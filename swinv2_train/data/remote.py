"""Remote shards: fetched in parts into a local cache of bounded size that all processes of a host share.

The cache is a plain directory with a file for each part. Lock files keep two processes from fetching the same part
twice; one lock for the directory keeps the sum of sizes under the bound. A part that was removed while a process still
needed it is fetched again, so the bound can cost time but never a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from swinv2_train.config.paths import user_path
from swinv2_train.data.errors import DataError, UnreachableData
from swinv2_train.data.parts import PartReader, ReplacedError, filesystem, is_web_page, version_of
from swinv2_train.data.remote_file import RemoteFile, server_of
from swinv2_train.data.retries import AccessDeniedError, http_status, with_retries
from swinv2_train.reading import is_count

logger = logging.getLogger(__name__)
_CHUNK_BYTES = 16 << 20
_SPARE = 32
"""Making room scans the entire cache, so it makes more than needed: up to this fraction of the bound."""
_DAY = 86400.0
_REPORTED: dict[tuple[str, Path], object] = {}
"""Kinds of reports that this process has printed or inherited, by cache directory."""
T = TypeVar("T")


class _StoppedError(Exception):
    """Reading ahead was called off."""


class _OtherBytesError(Exception):
    """A fetched file has another hash than its manifest says."""


class NoPartsError(Exception):
    """The server sends only entire files."""


class ShardCache:
    """Local copies of remote files under `directory`, least recently used out first beyond `max_bytes`.

    Args:
        directory: `~` in it is the home of the process, also after it was sent to another one.
    """

    def __init__(self, directory: Path, max_bytes: int, *, retries: int = 7, backoff: float = 0.5) -> None:
        self._stated, self.max_bytes = directory, max_bytes
        self.directory = user_path(directory)
        self.retries, self.backoff = retries, backoff
        self._parts: dict[str, bool] = {}
        """By server, once it is known: whether it sends parts of files."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "reported": [kind for kind, place in _REPORTED if place == self.directory]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        reported = state.pop("reported")
        self.__dict__ = state
        self.directory = self._stated.expanduser()  # a rank on another host may have another home
        _REPORTED.update({(kind, self.directory): None for kind in reported})

    def first(self, kind: str) -> bool:
        """Return whether this is the first report of a kind about this cache, in this run as far as it is known here.

        A process that gets the cache knows what was reported before that.
        """
        here = object()
        return _REPORTED.setdefault((kind, self.directory), here) is here

    def stat(self, url: str) -> RemoteFile:
        """Return size and version of a file. Raises FileNotFoundError, or DataError if the server reports no size."""

        def read() -> dict[str, Any]:
            fs, path = filesystem(url)
            return fs.info(path)

        return self.described(url, self._retry(url, read))

    def described(self, url: str, info: Mapping[str, Any]) -> RemoteFile:
        """Return a file from fsspec's description of it; errors as for `stat`."""
        if info.get("size") is None:
            raise DataError(f"{url}: the server does not report the size of the file, which the cache needs")
        if not is_count(info["size"]):
            raise DataError(f"{url}: the server reports the impossible size {info['size']!r}")
        return RemoteFile(url, info["size"], version_of(info), modified=str(info.get("Last-Modified", "")))

    def fetch_bytes(self, url: str, most: int | None = None) -> bytes | None:
        """Return a small remote file completely; None if it does not exist.

        Object stores answer "denied" for missing objects to those who may not list, so that counts as missing too.

        Args:
            most: bytes to fetch from the start of the file. A server that knows no ranges sends all of it.
        """

        def read() -> bytes:
            fs, path = filesystem(url)
            if most is None:
                return fs.cat_file(path)
            try:
                return fs.cat_file(path, start=0, end=most)
            except Exception as error:
                if http_status(error) != 416:  # the answer to a range of an empty file
                    raise
                return b""

        try:
            content = self._retry(url, read)
        except (FileNotFoundError, AccessDeniedError):
            return None
        if is_web_page(content):  # some servers answer so for whatever is absent
            logger.warning("%s: a web page came instead of the file; continuing without it", url)
            return None
        return content

    def open(self, file: RemoteFile) -> int:
        """Return a descriptor of the local copy, fetched first if it is missing. The caller closes it.

        Raises:
            NoPartsError: if a part is asked for, and the server sends only entire files.
        """
        while True:
            fd = self.open_cached(file)
            if fd is not None:
                return fd
            with self._locked(self._lock_path(file), wait=True):
                if self.touch(file):
                    continue  # another process was quicker
                self._fetch(file)

    def touch(self, file: RemoteFile) -> bool:
        """Return whether there is a local copy; if so, mark it as just used."""
        fd = self.open_cached(file)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def fetch(self, file: RemoteFile, stopped: Callable[[], bool]) -> None:
        """Have a local copy, unless another process is already fetching it. `stopped` is asked after every chunk."""
        if self.touch(file):
            return
        with self._locked(self._lock_path(file), wait=False) as mine:
            if mine and not self.touch(file):
                with contextlib.suppress(_StoppedError):
                    self._fetch(file, stopped)

    def indexing(self, file: RemoteFile) -> contextlib.AbstractContextManager[bool]:
        """Wait until no other process of the host indexes a file, and keep the others waiting."""
        return self._locked(self._lock_directory / f"{file.digest}.index", wait=True)

    def path(self, file: RemoteFile) -> Path:
        """Path of the local copy of a file, if it exists."""
        return self.directory / f"{file.digest}-{file.url.partition('?')[0].rpartition('/')[2]}"

    def open_cached(self, file: RemoteFile) -> int | None:
        """Return a descriptor of the local copy and mark it as just used; None without a copy."""
        try:
            fd = os.open(self.path(file), os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(fd).st_size != file.num_bytes:  # replaced by another one, on a server that reports no version
            os.close(fd)
            self.path(file).unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(fd)  # the time of last use, which decides who goes first
        return fd

    def discard(self, file: RemoteFile, fd: int) -> None:
        """Remove the local copy that a descriptor refers to, unless another one has replaced it."""
        with self._locked(self._lock_path(file), wait=True), contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path(file)), os.fstat(fd)):
                self.path(file).unlink()

    def _fetch(self, file: RemoteFile, stopped: Callable[[], bool] = lambda: False) -> None:
        """Fetch into a temporary file and rename. The caller holds the lock of the file.

        What does not fit together, or not the hash that the packer has written down, is fetched once more. The first
        part from a server is fetched alone: it shows whether the server sends parts.
        """
        server = server_of(file)
        if file.stop is not None and server not in self._parts:
            with self._locked(self._note_of(server).with_suffix(".first"), wait=True):
                if not self.has_parts(file):
                    raise NoPartsError
                if server not in self._parts:
                    self._fetch_again(file, stopped)
                    self._parts[server] = True
                    return
        self._fetch_again(file, stopped)

    def _fetch_again(self, file: RemoteFile, stopped: Callable[[], bool]) -> None:
        for last in (False, True):
            try:
                self._fetch_once(file, stopped)
            except ReplacedError as error:
                if last:
                    raise DataError(
                        f"{file.url} was replaced since it was opened ({error}): start again when it is uploaded"
                    ) from None
                logger.warning("%s changed while it was fetched (%s): fetching it again", file.url, error)
            except _OtherBytesError as error:
                if last:
                    raise DataError(
                        f"{file.url}: {error}, also when asked again; upload the shard and its manifest again, or ask "
                        "what a proxy on the way changes"
                    ) from None
                logger.warning("%s: %s; fetching it again", file.url, error)
            else:
                return

    def _fetch_once(self, file: RemoteFile, stopped: Callable[[], bool]) -> None:
        target = self.path(file)
        part = target.with_name(f"{target.name}.part")
        reader = PartReader(file.url, file.size, "" if file.from_manifest else file.version, file.modified)
        digest = hashlib.sha256()
        while not self._reserved(part, file):
            time.sleep(0.1)  # until one of the others that are being fetched is there, and can go
        try:
            with part.open("r+b") as local:
                position = file.start
                while position < file.end:  # a failure costs one chunk, not the file
                    stop = min(position + _CHUNK_BYTES, file.end)
                    data = self._chunk(reader, file, position, stop)
                    if file.stop is not None and len(data) > stop - position:
                        self._note_without_parts(file)
                        raise NoPartsError
                    position += self._written(local, data)
                    digest.update(data)
                    if stopped():
                        raise _StoppedError
                local.flush()
                os.fsync(local.fileno())  # before the rename, or a crash leaves zeros under the final name
            if file.sha256 and file.stop is None and digest.hexdigest() != file.sha256:
                raise _OtherBytesError("its bytes are not those that were packed (their SHA-256 differs)")
            with self._directory_locked():  # otherwise a process that counts sizes could miss the copy
                try:
                    part.replace(target)
                except FileNotFoundError as error:  # somebody, or an earlier version, has cleaned up
                    raise ReplacedError("its unfinished copy was removed") from error
        except BaseException:
            with self._directory_locked():
                self._remove(part)
            raise

    def _written(self, local: BinaryIO, data: bytes) -> int:
        try:
            return local.write(data)
        except OSError as error:
            raise UnreachableData(
                f"the cache {self.directory} cannot be written to ({error.strerror}): make room, lower data.cache_gib, "
                "or set data.cache_dir to another disk"
            ) from error

    def _chunk(self, reader: PartReader, file: RemoteFile, start: int, stop: int) -> bytes:
        """Bytes start..stop, or start..end from a server that knows no ranges."""
        try:
            return with_retries(
                file.url,
                lambda: reader.read(start, stop),
                retries=self.retries,
                backoff=self.backoff,
                through=(ReplacedError,),
            )
        except FileNotFoundError:
            raise DataError(f"{file.url} no longer exists") from None

    def _reserved(self, part: Path, file: RemoteFile) -> bool:
        """Make room for a file and reserve it, if enough of the other copies can be removed."""
        size = file.num_bytes
        if size > self.max_bytes:
            what = file.url if file.stop is None else f"a part of {file.url}"
            other = "" if self.has_parts(file) else ", or use a server that sends parts of files (HTTP ranges)"
            raise DataError(
                f"{what} has {size / 2**30:.3g} GiB, more than the cache may hold "
                f"({self.max_bytes / 2**30:.3g}): raise data.cache_gib or pack smaller shards{other}"
            )
        with self._directory_locked():
            self._remove(part)  # left behind by a process that died
            total = self._noted_total()
            if total is None or total + size > self.max_bytes:
                total = self._make_room(size)
            if total + size > self.max_bytes:
                self._note_total(total)
                return False
            self._note_total(total + size)  # first, so that a crash leaves the note too large rather than too small
            with part.open("xb") as local:
                local.truncate(size)  # others count it at its full size
        return True

    def _make_room(self, size: int) -> int:
        """Remove copies, least recently used first, until `size` more bytes fit; return the sum of all that remain."""
        entries = sorted(self._entries())
        total = sum(entry[1] for entry in entries)
        limit = self.max_bytes - size
        for _, entry_size, path in entries:
            if total <= limit and total - entry_size < limit - self.max_bytes // _SPARE:
                break
            if path.suffix != ".part" or self._abandoned(path):
                path.unlink(missing_ok=True)
                total -= entry_size
        return total

    def _remove(self, part: Path) -> None:
        """Remove an unfinished copy. The caller holds the lock of the directory."""
        with contextlib.suppress(FileNotFoundError):
            size = part.stat().st_size
            part.unlink()
            total = self._noted_total()
            if total is not None:
                self._note_total(total - size)

    def _noted_total(self) -> int | None:
        """Return the noted sum of sizes, which is never less than the real one; None if it is not known.

        Whoever removes copies by hand or in another way does not note it; the next scan corrects that.
        """
        try:
            noted = self._total_path.read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return int(noted) if noted.isascii() and noted.isdigit() else None

    def _note_total(self, total: int) -> None:
        with contextlib.suppress(OSError):
            self._total_path.unlink(missing_ok=True)  # so that a full disk leaves no note rather than an old one
            self._total_path.write_text(str(max(total, 0)))

    def _abandoned(self, part: Path) -> bool:
        """Return whether no process is fetching this unfinished copy any longer."""
        digest = part.name.partition("-")[0]
        for lock in (self._lock_directory / digest, self._lock_of(digest)):
            with self._locked(lock, wait=False) as mine:
                if not mine:
                    return False
        return True

    def has_parts(self, file: RemoteFile) -> bool:
        """Return whether the server of a file sends parts, as far as any process of this host has found out today."""
        server = server_of(file)
        if server not in self._parts:
            try:
                age = time.time() - self._note_of(server).stat().st_mtime
            except OSError:
                age = math.inf
            if age > _DAY:
                return True  # or not known yet
            self._parts[server] = False
        return self._parts[server]

    def _note_without_parts(self, file: RemoteFile) -> None:
        server = server_of(file)
        self._parts[server] = False
        logger.warning("%s sends only entire files (it ignores HTTP ranges), so entire shards are fetched", server)
        with contextlib.suppress(OSError):
            self._note_of(server).touch()

    def _note_of(self, server: str) -> Path:
        return self._lock_directory / f"no-parts-{hashlib.sha256(server.encode()).hexdigest()[:16]}"

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

    def _directory_locked(self) -> contextlib.AbstractContextManager[bool]:
        return self._locked(self.directory / ".lock", wait=True)

    @property
    def _total_path(self) -> Path:
        return self._lock_directory / "total"

    def _lock_path(self, file: RemoteFile) -> Path:
        if file.stop is None:  # that of earlier versions, which may use the same cache
            return self._lock_directory / file.digest
        return self._lock_of(file.digest)

    def _lock_of(self, digest: str) -> Path:
        """Return the lock of a part whose name starts with `digest`; a few thousand locks serve millions of parts."""
        return self._lock_directory / digest[:3]

    @contextlib.contextmanager
    def _locked(self, path: Path, *, wait: bool) -> Iterator[bool]:
        """Hold a lock file; without `wait`, yield whether it was acquired. The kernel releases it if the process
        dies."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise DataError(
                f"the cache {self.directory} cannot be written to ({error.strerror}): set data.cache_dir to another"
            ) from error
        try:
            mine = True
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                mine = False
            yield mine
        finally:
            # Unlock explicitly: a process forked in the meantime has this descriptor too and would keep the lock.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _retry(self, url: str, action: Callable[[], T]) -> T:
        return with_retries(url, action, retries=self.retries, backoff=self.backoff)
