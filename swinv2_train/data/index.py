"""The index of a tar shard: where the members of every sample lie, so that any sample is one `pread` away.

The samples are those that `webdataset` sees: neighbouring members whose names agree up to the first dot of the base
name. Only images and plain text (cls, txt, json) are taken in; a pickle in a shard is never indexed, so never read.

On disk an index is two lines of JSON: a small header (enough to count samples) and the columns.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.errors import DataError

INDEX_SUFFIX = ".index.jsonl"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff")
TEXT_EXTENSIONS = ("cls", "txt", "json")
_FORMAT = 1
_BLOCK = 512
_SAMPLE_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's split into key and extension
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories: the size field means nothing


@dataclass
class ShardIndex:
    """Columns over the samples of one shard, small enough to keep many in memory."""

    tar_size: int
    tar_mtime_ns: int
    keys: list[str]
    extensions: list[str]
    offsets: np.ndarray
    """(extensions, samples) int64: first byte of the member's data; -1: the sample has no such member."""
    sizes: np.ndarray
    """(extensions, samples) int64: bytes."""
    truncated: str | None = None
    """Why the shard ends early; its complete samples are indexed."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the packer knows about the shard: its share of the dataset card, its inputs."""

    @property
    def num_samples(self) -> int:
        return len(self.keys)

    def members(self, sample: int) -> dict[str, tuple[int, int]]:
        """Extension -> (offset, size) of one sample."""
        return {
            extension: (int(self.offsets[i, sample]), int(self.sizes[i, sample]))
            for i, extension in enumerate(self.extensions)
            if self.offsets[i, sample] >= 0
        }

    def header(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "tar_size": self.tar_size,
            "tar_mtime_ns": self.tar_mtime_ns,
            "num_samples": self.num_samples,
            "truncated": self.truncated,
            "extra": self.extra,
        }


def image_extension(extensions: list[str]) -> str | None:
    """Which member of a sample is the image: a plain `jpg` before a dotted `seg.png`; None without any."""
    images = [extension for extension in extensions if extension.rpartition(".")[2] in IMAGE_EXTENSIONS]
    return min(images, key=lambda extension: extension.count("."), default=None)


def _wanted(extension: str) -> bool:
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS or extension in TEXT_EXTENSIONS


def build_index(name: str, fd: int, extra: dict[str, Any] | None = None) -> ShardIndex:
    """Read the headers of an open tar (ustar, PAX and GNU long names); `name` is for messages.

    Raises DataError where the file is no plain tar or holds no sample with an image.
    """
    stat = os.fstat(fd)
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    truncated = None
    try:
        for member, offset, size in _tar_members(fd, name):
            match = _SAMPLE_NAME.match(member)
            if match is None:
                continue
            key, extension = match.group(1), match.group(2).lower()
            if not samples or samples[-1][0] != key:
                samples.append((key, {}))
            if offset + size > stat.st_size:
                samples.pop()  # the sample is incomplete, whatever of it came before
                raise _EndsEarlyError(f"it ends inside {member}")
            if _wanted(extension):
                samples[-1][1][extension] = (offset, size)
    except _EndsEarlyError as early:
        truncated = str(early)
    samples = [(key, members) for key, members in samples if image_extension(list(members)) is not None]
    if not samples:
        cut = f" (it is cut off: {truncated})" if truncated else ""
        raise DataError(f"{name} holds no sample with an image ({', '.join(IMAGE_EXTENSIONS)}){cut}")
    extensions = sorted({extension for _, members in samples for extension in members})
    rows = [[members.get(extension, (-1, 0)) for _, members in samples] for extension in extensions]
    table = np.array(rows, dtype=np.int64)
    return ShardIndex(
        tar_size=stat.st_size,
        tar_mtime_ns=stat.st_mtime_ns,
        keys=[key for key, _ in samples],
        extensions=extensions,
        offsets=table[..., 0].copy(),
        sizes=table[..., 1].copy(),
        truncated=truncated,
        extra=extra or {},
    )


class _EndsEarlyError(Exception):
    """The tar stops where it should not."""


def _tar_members(fd: int, tar: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of every regular file of a tar."""
    position, long_name, pax = 0, None, {}
    while True:
        header = os.pread(fd, _BLOCK, position)
        if position == 0 and header[:2] in (b"\x1f\x8b", b"BZ"):
            raise DataError(f"{tar} is compressed: unpack it (samples are read from anywhere inside)")
        if len(header) < _BLOCK:
            if position == 0:
                raise DataError(f"{tar} is not a tar file: it has only {len(header)} bytes")
            raise _EndsEarlyError("the end-of-archive mark is missing")
        if header.count(0) == _BLOCK:
            return
        if not _checksum_fits(header):
            if position == 0:
                raise DataError(f"{tar} is not a tar file")
            raise _EndsEarlyError(f"the header at byte {position} is damaged")
        kind, size = header[156:157], _number(header[124:136], position)
        if kind == b"L":
            long_name = os.pread(fd, size, position + _BLOCK).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        elif kind == b"x":
            pax = _pax_records(os.pread(fd, size, position + _BLOCK))
        elif kind in (b"g", b"K"):  # says nothing about where the next member lies
            pass
        elif kind == b"S" or any(key.startswith("GNU.sparse") for key in pax):
            raise DataError(f"{tar} holds a sparse file at byte {position}: repack it without --sparse")
        else:
            name = pax.get("path") or long_name or _short_name(header)
            size = 0 if kind in _WITHOUT_DATA else int(pax.get("size", size))
            if kind in _REGULAR:
                yield name, position + _BLOCK, size
            long_name, pax = None, {}
        position += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _checksum_fits(header: bytes) -> bool:
    """The sum of all bytes, the checksum field itself taken as blanks (POSIX ustar)."""
    text = header[148:156].strip(b" \0")
    if not text or any(byte not in b"01234567" for byte in text):
        return False
    return int(text, 8) == sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")


def _number(raw: bytes, position: int) -> int:
    """An octal field, or GNU's base 256 for what octal cannot hold."""
    if raw[0] & 0x80:
        return int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
    try:
        return int(raw.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _EndsEarlyError(f"the header at byte {position} is damaged") from None


def _short_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """Records of the form `<length> <key>=<value>\\n`, the length counting the whole record."""
    records, position = {}, 0
    while position < len(data):
        digits, _, _ = data[position : position + 20].partition(b" ")
        if not digits.isdigit():
            break
        record = data[position + len(digits) + 1 : position + int(digits) - 1]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        position += int(digits)
    return records


def write_index(index: ShardIndex, path: Path) -> None:
    """Write atomically: a reader sees the old index or the new one, never half of one."""
    columns = {
        "keys": index.keys,
        "extensions": index.extensions,
        "offsets": index.offsets.tolist(),
        "sizes": index.sizes.tolist(),
    }
    write_atomically(path, json.dumps(index.header()) + "\n" + json.dumps(columns, separators=(",", ":")) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a file with this text in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files can be read by their owner alone, and shards are shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of an index file; None where there is none that this version can read."""
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) and header.get("format") == _FORMAT else None


def read_index(path: Path) -> ShardIndex | None:
    """A whole index file; None where there is none that this version can read."""
    header = read_header(path)
    if header is None:
        return None
    try:
        with path.open(encoding="utf-8") as file:
            file.readline()
            columns = json.loads(file.readline())
        offsets, sizes = (np.array(columns[name], dtype=np.int64) for name in ("offsets", "sizes"))
        shape = (len(columns["extensions"]), len(columns["keys"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if offsets.shape != shape or sizes.shape != shape or shape[1] != header["num_samples"]:
        return None
    return ShardIndex(
        header["tar_size"],
        header["tar_mtime_ns"],
        columns["keys"],
        columns["extensions"],
        offsets,
        sizes,
        header["truncated"],
        header["extra"],
    )
