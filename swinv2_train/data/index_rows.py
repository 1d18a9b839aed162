"""Binary rows of an index: the members of one sample are a `pread` away, and no index is parsed to find them.

The file is made from an index (index.py) on first sight, next to it. Little-endian:

    head    magic, checksum of the head, counts, time and size of the tar, names of the extensions
    rows    one per sample, all equally long: checksum, length and place of the key, offset and size per extension, and
            if the packer recorded it, the CRC-32 of the member's data per extension
    keys    UTF-8, without separators

The checksum of a row covers the row, its key, and its number, so a row proves itself and the rest is never read.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np

from swinv2_train.data.image_files import own_extensions
from swinv2_train.data.index import ShardIndex
from swinv2_train.data.samples import IMAGE, VIDEO, Scope
from swinv2_train.reading import UnreadableError
from swinv2_train.writing import write_bytes

ROWS_SUFFIX = ".index.bin"
_MAGIC = b"SWINROW1"
_HEAD = struct.Struct("<8sIIIIqqqq")
_ROW = struct.Struct("<IIq")
_IS_VIDEO, _ALL_MEMBERS, _TRUNCATED, _CHECKSUMS = 1, 2, 4, 8
_MARK_FROM = 1 << 4
"""This bit of the flags, and all above it, identify the decoders of the user that were known."""
_FIRST_READ = 4096
"""Bytes of the first read, which nearly always contain the entire head."""


def rows_of(index: ShardIndex) -> bytes:
    """Return the content of the file of rows of an index."""
    keys = [key.encode("utf-8", "surrogatepass") for key in index.keys]
    # A slash separates the extensions, because no extension contains one.
    names = "/".join(index.extensions).encode("utf-8", "surrogatepass")
    count = len(index.extensions)
    fields = [("crc", "<u4"), ("key_bytes", "<u4"), ("key_at", "<i8"), ("places", "<i8", (count, 2))]
    kind = np.dtype([*fields, ("checksums", "<u4", (count,))] if index.checksums is not None else fields)
    rows = np.zeros(len(keys), kind)
    rows["key_bytes"] = [len(key) for key in keys]
    first_key = _HEAD.size + len(names) + rows.nbytes
    ends = first_key + np.cumsum(rows["key_bytes"], dtype=np.int64)
    rows["key_at"] = ends - rows["key_bytes"]
    rows["places"][..., 0], rows["places"][..., 1] = index.offsets.T, index.sizes.T
    flags = _IS_VIDEO * (index.scope.main == VIDEO) | _ALL_MEMBERS * index.scope.all_members
    flags |= _TRUNCATED * (index.truncated is not None) | _decoders_mark()
    if index.checksums is not None:
        flags |= _CHECKSUMS
        rows["checksums"] = index.checksums.T
    numbers = (len(index.extensions), len(names), flags, index.tar_size, index.tar_mtime_ns, len(keys), int(ends[-1]))
    crc = zlib.crc32(_HEAD.pack(_MAGIC, 0, *numbers) + names)
    plain, width = rows.tobytes(), kind.itemsize
    rows["crc"] = [_row_crc(plain[n * width : (n + 1) * width], key, n, crc) for n, key in enumerate(keys)]
    return b"".join([_HEAD.pack(_MAGIC, crc, *numbers), names, rows.tobytes(), *keys])


def write_rows(index: ShardIndex, path: Path) -> None:
    """Write atomically: a reader sees the old rows or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, rows_of(index))


class IndexRows:
    """Rows of an index, in an open file or in memory. Safe to use after a fork.

    Args:
        source: a descriptor, which `close` closes, or the content.

    Raises:
        UnreadableError: if it is damaged.
    """

    def __init__(self, source: int | bytes) -> None:
        self._source = source
        start = self._read(_FIRST_READ, 0)
        if len(start) < _HEAD.size or not start.startswith(_MAGIC):
            raise UnreadableError("it does not contain rows of an index")
        (_, self._crc, count, names_bytes, flags, *numbers) = _HEAD.unpack_from(start)
        self.tar_size, self.tar_mtime_ns, self.num_samples, num_bytes = numbers
        end = _HEAD.size + names_bytes
        head = start[:end] if end <= len(start) else self._read(end, 0)
        plain = head[: len(_MAGIC)] + bytes(4) + head[len(_MAGIC) + 4 :]
        if len(head) < end or zlib.crc32(plain) != self._crc:
            raise UnreadableError("its head has been changed (its checksum differs)")
        found = len(source) if isinstance(source, bytes) else os.fstat(source).st_size
        if found != num_bytes:
            raise UnreadableError(f"it has {found} bytes instead of {num_bytes}")
        self.extensions = head[_HEAD.size :].decode("utf-8", "surrogatepass").split("/")
        self.scope = Scope(VIDEO if flags & _IS_VIDEO else IMAGE, bool(flags & _ALL_MEMBERS))
        self.truncated = bool(flags & _TRUNCATED)
        """True if the tar ends early."""
        self.of_known_images = flags - flags % _MARK_FROM == _decoders_mark()
        """True if they were made with the decoders of the user that are known now, which decide what is an image."""
        places = f"{_ROW.format}{2 * count}q"
        self._row = struct.Struct(places + (f"{count}I" if flags & _CHECKSUMS else ""))
        self._columns = [(3 + 2 * number, name) for number, name in enumerate(self.extensions)]
        self._first_sum = 3 + 2 * count if flags & _CHECKSUMS else None
        self._first, self._width = end, self._row.size

    @classmethod
    def open(cls, path: Path) -> IndexRows:
        """Open a file.

        Raises:
            OSError: if there is none.
            UnreadableError: if it is damaged.
        """
        fd = os.open(path, os.O_RDONLY)
        try:
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def memory(self) -> int:
        """Bytes that the rows occupy in memory; 0 for those in a file."""
        return len(self._source) if isinstance(self._source, bytes) else 0

    def sample(self, number: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Return the key of a sample, and its members: extension -> (offset, size).

        Raises:
            UnreadableError: if its row is damaged.
        """
        row = self._read(self._width, self._first + number * self._width)
        if len(row) < self._width:
            raise UnreadableError(f"row {number} is missing")
        values = self._row.unpack(row)
        crc, key_bytes, key_at = values[:3]
        # Damage may have made the length anything, so bound it before reading.
        key = self._read(min(key_bytes, self.tar_size), key_at) if key_at > 0 else b""
        if _row_crc(row, key, number, self._crc) != crc:
            raise UnreadableError(f"row {number} has been changed (its checksum differs)")
        members = {name: values[at : at + 2] for at, name in self._columns if values[at] >= 0}
        return key.decode("utf-8", "surrogatepass"), members

    def checksums(self, number: int) -> dict[str, int]:
        """Return the CRC-32 of the members of a sample; empty if the packer did not record it. `sample` checks rows."""
        if self._first_sum is None:
            return {}
        values = self._row.unpack(self._read(self._width, self._first + number * self._width))
        return dict(zip(self.extensions, values[self._first_sum :], strict=True))

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._source, int):
            os.close(self._source)

    def _read(self, size: int, start: int) -> bytes:
        if isinstance(self._source, bytes):
            return self._source[start : start + size]
        return os.pread(self._source, size, start)


def _decoders_mark() -> int:
    """Return the flags for the decoders of the user that are known now; 0 without any."""
    own = own_extensions()
    return zlib.crc32("/".join(own).encode()) // _MARK_FROM * _MARK_FROM if own else 0


def _row_crc(row: bytes, key: bytes, number: int, head_crc: int) -> int:
    """Return the checksum of a row; its first four bytes, which contain the checksum, do not count."""
    return zlib.crc32(key, zlib.crc32(memoryview(row)[4:], (head_crc + number) & 0xFFFFFFFF))
