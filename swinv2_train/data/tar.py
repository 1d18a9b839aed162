"""Headers of a tar archive (ustar, PAX and GNU long names), one member at a time.

Every number of a header is checked before it is used as a size or a step, so damage ends in `DamagedError` and never in
a loop, a huge read, or silently other members. On intact archives the members are those that Python's `tarfile` lists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from swinv2_train.data.errors import DataError

BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories: the size field means nothing
_MAX_HEADER_BYTES = 1 << 20
"""Longest PAX header or GNU long name that is read; paths have at most a few thousand bytes."""
_MAX_PADDING = 64 << 20
"""Longest run of zeros after the end-of-archive mark that is read; writers pad to at most some MiB."""
_CHUNK = 1 << 20
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_FOREIGN = {
    b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """An entry of a tar."""

    name: str
    offset: int
    """First byte of its data in the archive."""
    size: int
    """Bytes of its data; 0 for links, devices and directories."""
    regular: bool
    """True if it is a file with data, as opposed to a link, a device, a directory or something unknown."""
    kind: bytes = b"0"
    """Type flag of its header: 1 and 2 are hard and symbolic links, 5 is a directory."""


class DamagedError(Exception):
    """The archive cannot be read any further. `str(error)` is the reason."""


def members(fd: int, tar: str) -> Iterator[Member]:
    """Yield the members of an open tar in order; `tar` is its name in messages.

    The data of a member that is yielded may extend past the end of a file that was cut off.

    Raises:
        DataError: if the file is not a plain tar.
        DamagedError: at the first header that is damaged, and if the archive ends early or is followed by other data.
    """
    tar_size = os.fstat(fd).st_size
    position, long_name = 0, None
    common: dict[str, bytes] = {}  # from global PAX headers
    pax: dict[str, bytes] = {}
    extended = False
    while True:
        header = os.pread(fd, BLOCK, position) if position < tar_size else b""
        _check_start(header, position, tar)
        if len(header) < BLOCK:
            raise DamagedError("the end-of-archive mark is missing")
        if header.count(0) == BLOCK:
            if extended:
                raise DamagedError(f"the header before byte {position} has no member")
            _check_end(fd, position, tar_size)
            return
        if not checksum_fits(header):
            raise _damaged(position)
        kind, size = header[156:157], number(header[124:136])
        if size is None:
            raise _damaged(position)
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            data = _extension(fd, position, size, tar_size)
            if kind == b"L":
                long_name = data.partition(b"\0")[0]
            elif kind == b"g":
                common |= _pax_records(data, position)
            elif kind != b"K":
                pax = _pax_records(data, position)
            extended = kind != b"g"
        else:
            records = {**common, **pax}
            if kind == b"S" or any(key.startswith("GNU.sparse") for key in records):
                raise DataError(f"{tar} holds a sparse file at byte {position}: repack it without --sparse")
            name = _name(header, long_name, records, position)
            size = 0 if kind in _WITHOUT_DATA else _size(records.get("size"), size, position)
            regular = kind in _REGULAR and not (kind == b"\0" and name.endswith("/"))  # so V7 marks a directory
            yield Member(name, position + BLOCK, size, regular, kind)
            long_name, pax, extended = None, {}, False
        position += BLOCK + -(-size // BLOCK) * BLOCK


def foreign_content(start: bytes) -> str | None:
    """Return what a file that begins with these bytes is, if it is a known format other than a tar."""
    if start.lstrip()[:1] == b"<":
        return "a web page, such as a login form or an error message"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself with git lfs pull"
    return next((f"compressed ({name})" for magic, name in _FOREIGN.items() if start.startswith(magic)), None)


def checksum_fits(header: bytes) -> bool:
    """Return whether a header block has the checksum that it states (POSIX ustar; signed in some old writers)."""
    stated = number(header[148:156], base256=False)
    if stated is None or not header[148:156].strip(b" \0"):
        return False
    blanks = 8 * ord(" ")
    unsigned = sum(header[:148]) + sum(header[156:]) + blanks
    if stated == unsigned:
        return True
    negative = sum(byte > 127 for byte in header[:148]) + sum(byte > 127 for byte in header[156:])
    return stated == unsigned - 256 * negative


def number(raw: bytes, *, base256: bool = True) -> int | None:
    """Return the value of a numeric field: octal, or GNU base 256 for what octal cannot hold; None if it is neither."""
    if base256 and raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    text = raw.partition(b"\0")[0].strip(b" ")
    return int(text or b"0", 8) if not text.strip(b"01234567") else None


def short_name(header: bytes) -> bytes:
    """Return the name in a header block, ignoring a PAX or GNU header before it."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _check_start(header: bytes, position: int, tar: str) -> None:
    """Refuse a file that does not begin with a tar header."""
    if position or (len(header) == BLOCK and (header.count(0) == BLOCK or checksum_fits(header))):
        return
    content = foreign_content(header)
    if content and content.startswith("compressed"):
        raise DataError(f"{tar} is {content}: unpack it (samples are read from anywhere inside)")
    if content:
        raise DataError(f"{tar} is not a tar file but {content}")
    raise DataError(f"{tar} is not a tar file{f': it has only {len(header)} bytes' if len(header) < BLOCK else ''}")


def _check_end(fd: int, position: int, tar_size: int) -> None:
    """Check that only padding follows the end-of-archive mark: a header that was zeroed looks like one."""
    stop = min(tar_size, position + _MAX_PADDING)
    for start in range(position, stop, _CHUNK):
        rest = os.pread(fd, min(_CHUNK, stop - start), start).lstrip(b"\0")
        if rest:
            raise DamagedError(f"data after the end-of-archive mark at byte {position} is ignored")
    if stop < tar_size:
        raise DamagedError(f"the end-of-archive mark at byte {position} is followed by {tar_size - position} bytes")


def _extension(fd: int, position: int, size: int, tar_size: int) -> bytes:
    """Read the data of a PAX header or GNU long name."""
    if size > _MAX_HEADER_BYTES:
        raise _damaged(position)
    if position + BLOCK + size > tar_size:
        raise DamagedError(f"it ends inside the header at byte {position}")
    return os.pread(fd, size, position + BLOCK)


def _name(header: bytes, long_name: bytes | None, records: dict[str, bytes], position: int) -> str:
    path = records.get("path")
    if path and b"\0" in path:
        raise _damaged(position)
    return (path or long_name or short_name(header)).decode("utf-8", "surrogateescape")


def _size(record: bytes | None, size: int, position: int) -> int:
    """Return the size of a member, which a PAX record may override."""
    if not record:
        return size
    if not re.fullmatch(rb"\d{1,19}", record):
        raise _damaged(position)
    return int(record)


def _pax_records(data: bytes, position: int) -> dict[str, bytes]:
    """Split records of the form `<length> <key>=<value>\\n`, where the length covers the complete record."""
    records, start = {}, 0
    while start < len(data) and data[start]:  # some writers pad with zeros
        match = _PAX_RECORD.match(data, start)
        if match is None:
            raise _damaged(position)
        end = start + int(match[1])
        if not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _damaged(position)
        records[match[2].decode("utf-8", "replace")] = data[match.end() : end - 1]
        start = end
    return records


def _damaged(position: int) -> DamagedError:
    return DamagedError(f"the header at byte {position} is damaged")
