"""Where the index of a shard is kept and when it is trusted.

Local: beside the tar, or in the cache directory where that place is read-only; trusted while size and time of the tar
agree. Remote: beside the tar if it was uploaded with it, else built from the fetched copy; trusted while the size
agrees.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
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
from swinv2_train.data.remote import ShardCache, is_remote

logger = logging.getLogger(__name__)


def index_header(url: str, cache: ShardCache, size: int) -> dict[str, Any]:
    """The header of a shard's index, which counts its samples; the index is built or fetched if need be."""
    for path in _places(url, cache):
        header = read_header(path)
        if header is not None and _fresh(header, url, size):
            return header
    return load_index(url, cache, size).header()


def load_index(url: str, cache: ShardCache, size: int) -> ShardIndex:
    """The index of a shard of `size` bytes, built or fetched if there is none or an old one.

    Raises DataError where the shard is no tar or holds no image.
    """
    stale = False
    for path in _places(url, cache):
        index = read_index(path)
        if index is not None and _fresh(index.header(), url, size):
            return index
        stale = stale or index is not None
    if stale:
        logger.warning("%s changed after its index was written: indexing it again", url)
    return _remote_index(url, cache, size) if is_remote(url) else _local_index(url, cache)


def index_path(tar: str | Path) -> Path:
    """The place of an index beside its tar."""
    return Path(f"{tar}{INDEX_SUFFIX}")


def beside(url: str, suffix: str) -> str:
    """A URL with a suffix after its path, before any query."""
    path, mark, query = url.partition("?")
    return f"{path}{suffix}{mark}{query}"


def _places(url: str, cache: ShardCache) -> list[Path]:
    name = url if is_remote(url) else str(Path(url).resolve())
    cached = cache.directory / "index" / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}{INDEX_SUFFIX}"
    return [cached] if is_remote(url) else [index_path(url), cached]


def _fresh(header: dict[str, Any], url: str, size: int) -> bool:
    if is_remote(url):
        return header["tar_size"] == size
    stat = os.stat(url)
    return (header["tar_size"], header["tar_mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)


def _local_index(path: str, cache: ShardCache) -> ShardIndex:
    fd = os.open(path, os.O_RDONLY)
    try:
        index = build_index(path, fd)
    finally:
        os.close(fd)
    for place in _places(path, cache):
        if _written(lambda place=place: write_index(index, place)):
            return index
    logger.warning("the index of %s can be kept nowhere: it is built anew each time", path)
    return index


def _remote_index(url: str, cache: ShardCache, size: int) -> ShardIndex:
    (place,) = _places(url, cache)
    content = cache.fetch_bytes(beside(url, INDEX_SUFFIX))
    if content is not None:
        write_atomically(place, content.decode("utf-8", "replace"))
        index = read_index(place)
        if index is not None and index.tar_size == size:
            return index
        logger.warning("the index beside %s is not of this shard: indexing it again", url)
    fd = cache.open(url, size)
    try:
        index = build_index(url, fd)
    finally:
        os.close(fd)
    write_index(index, place)
    return index


def _written(write: Callable[[], None]) -> bool:
    try:
        write()
    except OSError:
        return False
    return True
