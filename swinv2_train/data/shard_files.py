"""Open files of a set of shards: the tars of local ones, and the rows of indexes."""

from __future__ import annotations

import logging
import os
import socket
from collections import OrderedDict
from typing import Any

from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.index import ShardIndex
from swinv2_train.data.index_rows import IndexRows
from swinv2_train.data.index_store import forget_index, load_index, open_rows, store_rows
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import RemoteFile
from swinv2_train.data.samples import Scope
from swinv2_train.data.shard_table import ShardTable
from swinv2_train.reading import UnreadableError
from swinv2_train.text import counted

logger = logging.getLogger(__name__)
_MAX_OPEN_FILES = 64
_MAX_ROW_BYTES = 8 << 20
"""Bytes of the rows that are kept in memory, because they can be stored nowhere."""


class ShardFiles:
    """Descriptors and rows that were used last; opened again when they are needed, also after a fork or in another
    process.

    Args:
        table: shards of the set.
        scope: samples and members that the indexes must have.
    """

    def __init__(self, table: ShardTable, cache: ShardCache, scope: Scope) -> None:
        self._table, self._cache, self.scope = table, cache, scope
        self.most_open = _MAX_OPEN_FILES
        """Number of files of each kind that stay open."""
        self._files: OrderedDict[int, int] = OrderedDict()
        self._rows: OrderedDict[int, IndexRows] = OrderedDict()
        self._index_of: tuple[int, ShardIndex] | None = None
        """Number and index of the last shard whose entire index was needed."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_rows": OrderedDict(), "_index_of": None}

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])
        self.forget_indexes()

    def forget_indexes(self) -> None:
        """Close the rows; they are read again, in the scope that is now wanted."""
        self._index_of = None
        while self._rows:
            self._rows.popitem()[1].close()

    def local(self, shard: int) -> int:
        """Return the descriptor of a local shard, kept open for further samples."""
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self._table[shard].url, os.O_RDONLY)
            except OSError as error:
                raise self._unreadable(shard, error) from None
            while len(self._files) > self.most_open:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _unreadable(self, shard: int, error: OSError) -> DataError:
        return DataError(
            f"{self._table[shard].url} can no longer be read on {socket.gethostname()} ({error.strerror}): every host "
            "needs all shards under the same path"
        )

    def changed(self, shard: int, now: int) -> DataError:
        """Return the error for a shard that has another number of samples now."""
        entry = self._table[shard]
        return DataError(
            f"{entry.url} holds {counted(now, 'sample')} where {entry.num_samples} were counted before: "
            "it was changed; rerun swinv2-data pack or start over"
        )

    def row(self, shard: int, sample: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Return key and members of a sample, from its row of the index alone."""
        try:
            return self.rows(shard).sample(sample)
        except UnreadableError as error:
            entry = self._table[shard]
            logger.warning("making the rows of the index of %s again (%s)", entry.url, error)
            self._keep_rows(shard, store_rows(self.index(shard), entry.url, self._cache, entry.file))
            return self._rows[shard].sample(sample)

    def rows(self, shard: int) -> IndexRows:
        """Return the rows of a shard."""
        if shard not in self._rows:
            self._keep_rows(shard, self._open_rows(shard))
        self._rows.move_to_end(shard)
        return self._rows[shard]

    def fetch_index_again(self, shard: int) -> None:
        """Remove the index of a remote shard from the cache, so that its next use fetches the uploaded one."""
        entry = self._table[shard]
        assert entry.file is not None
        forget_index(entry.file, self._cache, self.scope)
        self.forget_indexes()

    def replace_index(self, shard: int, index: ShardIndex, file: RemoteFile) -> None:
        """Use another index of a remote shard from now on."""
        self._index_of = (shard, index)
        self._keep_rows(shard, store_rows(index, file.url, self._cache, file))

    def _open_rows(self, shard: int) -> IndexRows:
        entry = self._table[shard]
        try:
            tar = os.fstat(self.local(shard)) if entry.file is None else None
            rows = open_rows(entry.url, self._cache, entry.file, self.scope, tar)
        except OSError as error:
            raise self._unreadable(shard, error) from None
        if rows.num_samples != entry.num_samples:
            rows.close()
            raise self.changed(shard, rows.num_samples)
        return rows

    def _keep_rows(self, shard: int, rows: IndexRows) -> None:
        """Keep rows open, in place of those that were used least recently."""
        if shard in self._rows:
            self._rows.pop(shard).close()
        self._rows[shard] = rows
        while len(self._rows) > 1 and (
            len(self._rows) > self.most_open or sum(kept.memory for kept in self._rows.values()) > _MAX_ROW_BYTES
        ):
            self._rows.popitem(last=False)[1].close()

    def index(self, shard: int) -> ShardIndex:
        """Return the entire index of a shard, for statistics over its samples; `row` reads single samples."""
        if self._index_of is None or self._index_of[0] != shard:
            entry = self._table[shard]
            try:
                index = load_index(entry.url, self._cache, entry.file, self.scope)
            except OSError as error:
                raise self._unreadable(shard, error) from None
            if index.num_samples != entry.num_samples:
                raise self.changed(shard, index.num_samples)
            self._index_of = (shard, index)
        return self._index_of[1]


def read_member(fd: int, offset: int, size: int) -> bytes:
    """Read a member of an open tar. Raises BrokenSample if it cannot be read completely."""
    parts, left = list[bytes](), size
    try:
        while left and (part := os.pread(fd, left, offset + size - left)):  # Linux reads at most 2 GiB at a time
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise BrokenSample(f"the shard cannot be read here ({error.strerror})") from None
    if left:
        raise BrokenSample(f"the shard ends {left} bytes too early")
    return parts[0] if len(parts) == 1 else b"".join(parts)
