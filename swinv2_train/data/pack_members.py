"""Members of a shard as they are written: bytes, or a file that is copied without being in memory."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from swinv2_train.data.errors import DataError

if TYPE_CHECKING:
    from webdataset import TarWriter

_BLOCK = 512
_LONG_NAME = 3 * _BLOCK  # minimum size of a PAX header for a long or non-ASCII name
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A member whose bytes are in a file. Its state is taken before the file is examined, so a later change shows."""

    path: Path
    size: int
    time: int
    """Of the last change, in nanoseconds."""
    temporary: bool = False
    """True for a file that the packer made; it is removed once it is in the shard."""

    @classmethod
    def of(cls, path: Path, *, temporary: bool = False) -> StoredFile:
        """Take the state of a file. Raises OSError."""
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns, temporary)


Content = bytes | StoredFile


def size_of(content: Content) -> int:
    """Return the bytes of a member."""
    return content.size if isinstance(content, StoredFile) else len(content)


def tar_bytes(key: str, extension: str, content: Content) -> int:
    """Return the bytes of a tar that a member takes."""
    name = f"{key}.{extension}"
    plain = name.isascii() and len(name) <= 100
    path = 0 if plain else _LONG_NAME + -(-len(os.fsencode(name)) // _BLOCK) * _BLOCK
    return _BLOCK + -(-size_of(content) // _BLOCK) * _BLOCK + path


def padded(size: int) -> int:
    """Return the size of a tar with members of this many bytes."""
    return -(-(size + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def tar_writer(file: BinaryIO) -> TarWriter:
    """Open webdataset's writer so that the bytes depend only on names and contents: time 0, owner 0 without a name."""
    from webdataset import TarWriter

    return TarWriter(file, user="", group="", mode=_MODE, encoder=False, mtime=0, format="PAX_FORMAT")


def write_member(tar: TarWriter, key: str, extension: str, content: Content) -> None:
    """Write one member: alone, because the writer sorts those that it gets together, and the main one comes first.

    Raises:
        DataError: if its file has changed since it was examined.
    """
    if isinstance(content, bytes):
        tar.write({"__key__": key, extension: content})
        return
    header = tarfile.TarInfo(f"{key}.{extension}")  # as the writer fills it
    header.size, header.mtime, header.mode, header.uname, header.gname = content.size, 0, _MODE, "", ""
    try:
        with content.path.open("rb") as file:
            _check_unchanged(content, file)
            tar.tarstream.addfile(header, file)
            _check_unchanged(content, file)
    except FileNotFoundError:
        raise DataError(f"{content.path} disappeared while it was packed: rerun the same command") from None
    if content.temporary:
        content.path.unlink()


def _check_unchanged(content: StoredFile, file: BinaryIO) -> None:
    found = os.fstat(file.fileno())
    if (found.st_size, found.st_mtime_ns) != (content.size, content.time):
        raise DataError(f"{content.path} was changed while it was packed: rerun the same command")
