"""Where the index of a shard is kept and when it is trusted.

Local: beside the tar, or in the cache directory where that place is read-only; trusted while size and time of the tar
agree. Remote: beside the tar if it was uploaded with it, else built from the fetched copy; trusted while the size
agrees.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from swinv2_train.data.index import (
    INDEX_SUFFIX,
    ShardIndex,
    build_index,
    read_header,
    read_index,
    write_atomically,
    write_index,
)
from swinv2_train.data.remote import RemoteFile, ShardCache

logger = logging.getLogger(__name__)


def index_header(url: str, cache: ShardCache, file: RemoteFile | None) -> dict[str, Any]:
    """The header of a shard's index, which counts its samples; the index is built or fetched if need be.

    `file` is None for a local shard.
    """
    for path in _places(url, cache, file):
        header = read_header(path)
        if header is not None and _fresh(header, url, file) and _complete(header, file):
            return header
    return load_index(url, cache, file).header()


def load_index(url: str, cache: ShardCache, file: RemoteFile | None) -> ShardIndex:
    """The index of a shard, built or fetched if there is none or an old one.

    Raises DataError where the shard is no tar or holds no image.
    """
    old = None
    for path in _places(url, cache, file):
        index = read_index(path)
        if index is not None and _fresh(index.header(), url, file) and _complete(index.header(), file):
            return index
        old = old or index
    return _local_index(url, cache, old) if file is None else _remote_index(file, cache)


def index_path(tar: str | Path) -> Path:
    """The place of an index beside its tar."""
    return Path(f"{tar}{INDEX_SUFFIX}")


def beside(url: str, suffix: str) -> str:
    """A URL with a suffix after its path, before any query."""
    path, mark, query = url.partition("?")
    return f"{path}{suffix}{mark}{query}"


def _places(url: str, cache: ShardCache, file: RemoteFile | None) -> list[Path]:
    digest = file.digest if file else hashlib.sha256(os.fsencode(Path(url).resolve())).hexdigest()[:20]
    cached = cache.directory / "index" / f"{digest}{INDEX_SUFFIX}"
    return [cached] if file else [index_path(url), cached]


def _fresh(header: dict[str, Any], url: str, file: RemoteFile | None) -> bool:
    if file is not None:
        return header["tar_size"] == file.size
    stat = os.stat(url)
    return (header["tar_size"], header["tar_mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)


def _complete(header: dict[str, Any], file: RemoteFile | None) -> bool:
    """Return whether an index counts the members that are not read, or needs no such count.

    Earlier versions did not count them, nor did they read as many formats. A local tar is indexed again, which is
    cheap; the packer leaves nothing out, and a remote tar would have to be fetched.
    """
    return file is not None or header.get("left_out") is not None or "pack" in header["extra"]


def _local_index(path: str, cache: ShardCache, old: ShardIndex | None) -> ShardIndex:
    """Index a tar again; what the packer recorded stays if the tar was only copied or touched."""
    fd = os.open(path, os.O_RDONLY)
    try:
        index = build_index(path, fd)
    finally:
        os.close(fd)
    if old is not None and index.same_members(old):
        index.extra = old.extra
    elif old is not None and not _fresh(old.header(), path, None):
        logger.warning("%s changed after its index was written: indexing it again", path)
    for place in _places(path, cache, None):
        try:
            write_index(index, place)
        except OSError:
            continue
        return index
    logger.warning("the index of %s can be kept nowhere: it is built anew each time", path)
    return index


def _remote_index(file: RemoteFile, cache: ShardCache) -> ShardIndex:
    (place,) = _places(file.url, cache, file)
    content = cache.fetch_bytes(beside(file.url, INDEX_SUFFIX))
    if content is not None:
        write_atomically(place, content.decode("utf-8", "replace"))
        index = read_index(place)
        if index is not None and index.tar_size == file.size and _packed_as(index, file):
            return index
        logger.warning("the index beside %s is not of this shard: indexing it again", file.url)
    fd = cache.open(file)
    try:
        index = build_index(file.url, fd)
    finally:
        os.close(fd)
    write_index(index, place)
    return index


def _packed_as(index: ShardIndex, file: RemoteFile) -> bool:
    """Whether an uploaded index is of the version that the manifest names; foreign shards have nothing to compare."""
    fingerprint = index.extra.get("pack", {}).get("fingerprint")
    return fingerprint is None or not file.from_manifest or fingerprint == file.version
