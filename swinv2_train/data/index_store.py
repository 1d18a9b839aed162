"""Location of a shard's index and of its binary rows, and the conditions under which they are trusted.

Local: next to the tar, or in the cache directory if that place is read-only; trusted while size and time of the tar
agree. Remote: next to the tar if it was uploaded with it, else built from the fetched copy; trusted while the size
agrees and the copy has a header where the index has a member. A damaged index is rebuilt. Rows are trusted under the
same conditions, and made again from the index otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import own_extensions
from swinv2_train.data.index import (
    INDEX_SUFFIX,
    ShardIndex,
    build_index,
    misplaced,
    parse_header,
    parse_index,
    read_header,
    read_index,
    scope_of,
    write_index,
)
from swinv2_train.data.index_rows import ROWS_SUFFIX, IndexRows, rows_of, write_rows
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import RemoteFile
from swinv2_train.data.samples import IMAGE, VIDEO, Scope
from swinv2_train.reading import UnreadableError

logger = logging.getLogger(__name__)
HEADER_BYTES = 16 << 10
"""Bytes of an uploaded index that are fetched to count its samples; a longer header costs a second request."""


def index_header(
    url: str, cache: ShardCache, file: RemoteFile | None, scope: Scope, start: bytes | None = None
) -> dict[str, Any]:
    """Return the header of a shard's index, which counts its samples; the index is built or fetched if need be.

    Args:
        file: None for a local shard.
        start: the first `HEADER_BYTES` of the uploaded index, if they are here already.
    """
    for path in _places(url, cache, file, scope):
        header = read_header(path)
        if header is not None and _fresh(header, url, file) and _complete(header, file, scope):
            return header
    uploaded = _uploaded_header(file, cache, scope, start) if file is not None else None
    return uploaded or load_index(url, cache, file, scope).header()


def load_index(url: str, cache: ShardCache, file: RemoteFile | None, scope: Scope) -> ShardIndex:
    """Return the index of a shard, built or fetched if there is none, an old one, or one with too few members.

    Raises:
        DataError: if the shard is not a tar or contains no image (or video, depending on `scope`).
    """
    old = None
    for path in _places(url, cache, file, scope):
        index = read_index(path)
        # Without a hash a local tar is indexed again, which reads as much of it as a check of the index would.
        proven = file is not None or (index is not None and index.proven)
        header = index.header() if index is not None else {}
        if index is not None and proven and _fresh(header, url, file) and _complete(header, file, scope):
            return index
        old = old or index
    return _local_index(url, cache, old, scope) if file is None else _remote_index(file, cache, old, scope)


def open_rows(
    url: str, cache: ShardCache, file: RemoteFile | None, scope: Scope, tar: os.stat_result | None = None
) -> IndexRows:
    """Return the rows of a shard's index; if there are none, or old ones, they are made from the index.

    Args:
        tar: size and time of a local shard; None for a remote one.

    Raises:
        DataError: as for `load_index`.
    """
    rows = _fresh_rows(url, cache, file, scope, tar)
    if rows is not None:
        return rows
    if file is None:
        return store_rows(load_index(url, cache, file, scope), url, cache, file)
    with cache.indexing(file):  # so that one process of a host fetches an index that many need
        rows = _fresh_rows(url, cache, file, scope, tar)
        return rows or store_rows(load_index(url, cache, file, scope), url, cache, file)


def _fresh_rows(
    url: str, cache: ShardCache, file: RemoteFile | None, scope: Scope, tar: os.stat_result | None
) -> IndexRows | None:
    for path in _places(url, cache, file, scope, ROWS_SUFFIX):
        rows = _read_rows(path)
        if rows is None:
            continue
        fresh = rows.tar_size == file.size if file is not None else _same_time(rows, tar) and rows.of_known_images
        if fresh and rows.scope.main == scope.main and (rows.scope.all_members or not scope.all_members):
            return rows
        rows.close()
    return None


def store_rows(index: ShardIndex, url: str, cache: ShardCache, file: RemoteFile | None) -> IndexRows:
    """Write the rows of an index to the first place that allows it and open them; without one, keep them in memory."""
    for place in _places(url, cache, file, index.scope, ROWS_SUFFIX):
        try:
            write_rows(index, place)
        except OSError:
            continue
        rows = _read_rows(place)
        if rows is not None:
            return rows
    if cache.first("rows"):
        logger.warning(
            "cannot store the rows of indexes (first: that of %s) next to the shards or in %s; reading the entire "
            "index every time: set data.cache_dir to a directory that can be written to",
            url,
            cache.directory,
        )
    return IndexRows(rows_of(index))


def _read_rows(path: Path) -> IndexRows | None:
    try:
        return IndexRows.open(path)
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        logger.warning("ignoring %s (%s)", path, error.strerror if isinstance(error, OSError) else error)
        return None


def _same_time(rows: IndexRows, tar: os.stat_result | None) -> bool:
    return tar is not None and (rows.tar_size, rows.tar_mtime_ns) == (tar.st_size, tar.st_mtime_ns)


def open_copy(file: RemoteFile, index: ShardIndex, cache: ShardCache) -> tuple[int, RemoteFile, ShardIndex]:
    """Open the local copy of a remote shard or of a part, after a check that it has the members of its index.

    A copy that does not fit is removed and fetched again, once. If the new copy does not fit either but the shard is an
    intact tar, the index is of another shard: it is rebuilt from the shard.

    Returns:
        A descriptor, which the caller closes, the file that it is a copy of, and the index that fits it. The file is
        the entire shard if the index had to be rebuilt.

    Raises:
        DataError: if the server's response is not the shard.
        NoPartsError: if a part is asked for, and the server sends only entire files.
    """
    fd = cache.open(file)
    wrong = misplaced(index, fd, file.start, file.end)
    if wrong is None:
        return fd, file, index
    logger.warning("%s is not a copy of %s (%s): fetching it again", cache.path(file), file.url, wrong)
    cache.discard(file, fd)
    os.close(fd)
    fd = cache.open(file)
    wrong = misplaced(index, fd, file.start, file.end)
    if wrong is None:
        return fd, file, index
    if file.stop is not None:
        cache.discard(file, fd)
        os.close(fd)
        return open_copy(file.whole, index, cache)
    built = None
    try:
        built = build_index(file.url, fd, scope=index.scope)
        wrong = built.truncated
    except DataError as error:
        wrong = str(error)
    if built is None or wrong is not None:
        cache.discard(file, fd)
        os.close(fd)
        raise DataError(f"{file.url}: the server sends something else than the shard, also when asked again ({wrong})")
    logger.warning("the index of %s is of another shard: indexing it again", file.url)
    _keep(built, file, cache)
    return fd, file, built


def index_path(tar: str | Path, main: str = IMAGE) -> Path:
    """Return the place of an index next to its tar; `main` is that of its scope."""
    return Path(f"{tar}{_suffix(main, INDEX_SUFFIX)}")


def rows_path(tar: str | Path, main: str = IMAGE) -> Path:
    """Return the place of the rows of an index next to its tar."""
    return Path(f"{tar}{_suffix(main, ROWS_SUFFIX)}")


def remove_index(tar: str | Path, mains: Sequence[str] = (IMAGE, VIDEO)) -> None:
    """Remove the indexes of these main members next to a tar, and their rows."""
    for main in mains:
        for path in (index_path(tar, main), rows_path(tar, main)):
            path.unlink(missing_ok=True)


def forget_index(file: RemoteFile, cache: ShardCache, scope: Scope) -> None:
    """Remove the index of a remote shard, and its rows, from the cache."""
    for suffix in (INDEX_SUFFIX, ROWS_SUFFIX):
        for path in _places(file.url, cache, file, scope, suffix):
            path.unlink(missing_ok=True)


def ask_for_start(fs: Any, path: str) -> Awaitable[bytes]:
    """Ask an asynchronous file system of fsspec for the first `HEADER_BYTES` of an uploaded index."""
    return fs._cat_file(path, start=0, end=HEADER_BYTES)


def uploaded_index(url: str, main: str) -> str:
    """Return the URL of the index next to a remote shard, with the query of the shard."""
    path, mark, query = url.partition("?")
    return f"{path}{_suffix(main, INDEX_SUFFIX)}{mark}{query}"


def _places(
    url: str, cache: ShardCache, file: RemoteFile | None, scope: Scope, suffix: str = INDEX_SUFFIX
) -> list[Path]:
    return places_next_to(url, cache, file, _suffix(scope.main, suffix))


def _suffix(main: str, suffix: str) -> str:
    # Other main members are other samples, so both indexes of a tar may be in use at a time.
    return suffix if main == IMAGE else f".{main}{suffix}"


def places_next_to(url: str, cache: ShardCache, file: RemoteFile | None, suffix: str) -> list[Path]:
    """Return the places of a file about a shard, the preferred one first: next to a local tar, and in the cache."""
    digest = file.digest if file else hashlib.sha256(os.fsencode(Path(url).resolve())).hexdigest()[:20]
    cached = cache.directory / "index" / f"{digest}{suffix}"
    return [cached] if file else [Path(f"{url}{suffix}"), cached]


def _fresh(header: dict[str, Any], url: str, file: RemoteFile | None) -> bool:
    if file is not None:
        return header["tar_size"] == file.size
    found = os.stat(url)
    return (header["tar_size"], header["tar_mtime_ns"]) == (found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _complete(header: dict[str, Any], file: RemoteFile | None, scope: Scope) -> bool:
    """Return whether an index has the members that are asked for, and counts those that are not read if it must.

    Earlier versions did not count them, nor did they read as many formats; and an index made with other decoders of the
    user has other images. A local tar is indexed again, which is cheap; the packer leaves nothing out, and a remote tar
    would have to be fetched.
    """
    found = scope_of(header)
    if found.main != scope.main or (scope.all_members and not found.all_members):
        return False
    if file is not None or "pack" in header["extra"]:
        return True
    same = scope.main != IMAGE or header.get("decoders", []) == own_extensions()
    return same and header.get("left_out") is not None


def _local_index(path: str, cache: ShardCache, old: ShardIndex | None, scope: Scope) -> ShardIndex:
    """Index a tar again; keep what the packer recorded if the tar was only copied or touched."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
        raise DataError(f"{path} is not a file")
    with _closing(os.open(path, os.O_RDONLY)) as fd:
        index = build_index(path, fd, scope=_wider(scope, old))
    if old is not None and index.same_members(old):
        index.extra = old.extra
    elif old is not None and not _fresh(old.header(), path, None):
        logger.warning("%s changed after its index was written: indexing it again", path)
    for place in _places(path, cache, None, scope):
        try:
            write_index(index, place)
        except OSError:
            continue
        return index
    _report_unkept(path, cache)
    return index


def _wider(scope: Scope, old: ShardIndex | None) -> Scope:
    """Return a scope that also has the members of the index that it replaces."""
    return replace(scope, all_members=scope.all_members or (old is not None and old.scope.all_members))


def _remote_index(file: RemoteFile, cache: ShardCache, old: ShardIndex | None, scope: Scope) -> ShardIndex:
    """Return the index that was uploaded with a shard, or index the fetched shard.

    Args:
        old: an index in the cache that has too few members, or is of another version of the shard.
    """
    index = None
    if old is None or old.tar_size != file.size:
        old = index = _uploaded_index(file, cache, scope)
    if index is None or not _complete(index.header(), file, scope):
        index = _index_of_copy(file, cache, scope)
        if old is not None and old.tar_size == file.size and index.same_members(old):
            index.extra = old.extra
    _keep(index, file, cache)
    return index


def _uploaded_header(file: RemoteFile, cache: ShardCache, scope: Scope, start: bytes | None) -> dict[str, Any] | None:
    """Return the header of the index next to a remote shard, from its first bytes; None if it cannot be used.

    A short index arrives completely and is kept, so that reading the shard does not fetch it again.
    """
    if start is None:
        start = cache.fetch_bytes(uploaded_index(file.url, scope.main), HEADER_BYTES)
    line, end, _ = (start or b"").partition(b"\n")
    try:
        header = parse_header(line) if end else None
    except UnreadableError:  # reported when the entire index is read
        return None
    if start is None or header is None or not (_is_of(header, file) and _complete(header, file, scope)):
        return None
    if len(start) != HEADER_BYTES:
        index = parse_index(start, f"next to {file.url}")
        if index is None:
            return None
        _keep(index, file, cache)
    return header


def _uploaded_index(file: RemoteFile, cache: ShardCache, scope: Scope) -> ShardIndex | None:
    """Return the index next to a remote shard; None if there is none of this shard."""
    content = cache.fetch_bytes(uploaded_index(file.url, scope.main))
    if content is None:
        return None
    index = parse_index(content, f"next to {file.url}")
    if index is None or not _is_of(index.header(), file):
        logger.warning("the index next to %s is not of this shard: indexing it again", file.url)
        return None
    return index


def _index_of_copy(file: RemoteFile, cache: ShardCache, scope: Scope) -> ShardIndex:
    """Index a fetched shard. A damaged one may be a bad copy, so fetch it a second time."""
    for last in (False, True):
        with _closing(cache.open(file)) as fd:
            try:
                index = build_index(file.url, fd, scope=scope)
                if index.truncated is None or last:
                    return index
                wrong = index.truncated
            except DataError as error:
                wrong = str(error)
                if last:
                    cache.discard(file, fd)  # or the page of a login would stay
                    raise
            cache.discard(file, fd)
        logger.warning("the copy of %s is damaged (%s): fetching it again", file.url, wrong)
    raise AssertionError("unreachable")


def _keep(index: ShardIndex, file: RemoteFile, cache: ShardCache) -> None:
    (place,) = _places(file.url, cache, file, index.scope)
    try:
        write_index(index, place)
    except OSError:
        _report_unkept(file.url, cache)


def _report_unkept(url: str, cache: ShardCache) -> None:
    """Warn once that indexes cannot be stored; their rows cannot be stored either."""
    cache.first("rows")
    if cache.first("index"):
        logger.warning(
            "cannot store the indexes of shards (first: that of %s) next to them or in %s; rebuilding them every time: "
            "set data.cache_dir to a directory that can be written to",
            url,
            cache.directory,
        )


def _is_of(header: dict[str, Any], file: RemoteFile) -> bool:
    """Return whether an uploaded index is of this version of a shard: its size, and the manifest's fingerprint.

    Foreign shards have no fingerprint.
    """
    fingerprint = header["extra"].get("pack", {}).get("fingerprint")
    if header["tar_size"] != file.size:
        return False
    return fingerprint is None or not file.from_manifest or fingerprint == file.version
