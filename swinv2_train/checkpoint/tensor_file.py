"""Safetensors files, written from a stream and read in slices.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header (little-endian), the header
as JSON, padded with spaces to a multiple of 8 bytes, then the tensors without gaps, in the order of their offsets.
The library's own `save_file` is not used: before version 0.8 it holds the GIL while writing the entire file, which
stops training during a save, and since 0.8 only the owner can read the file. Its `safe_open` is not used either: it
maps the file into memory, which turns a failing disk into a crash. The header is checked by the same rules instead; the
tests compare the results of both on damaged files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.reading import is_count

DTYPES = {"fp32": ("F32", 4), "bf16": ("BF16", 2), "fp16": ("F16", 2)}
"""Names of the dtypes: this package's, that of safetensors, and bytes per element."""
_MAX_HEADER = 100_000_000
"""Maximum length of a header in bytes; the safetensors library rejects more."""
_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element of the dtypes of the format; those below one byte are not supported."""


@dataclass(frozen=True)
class Written:
    """A finished file."""

    size: int
    sha256: str


def read_exactly(file: Any, count: int) -> bytearray:
    """Read exactly `count` bytes from an open binary file.

    Raises:
        ValueError: if the file ends early.
    """
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = file.readinto(view[done:])
        if not got:
            raise ValueError("it ends early")
        done += got
    return data


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file."""

    dtype: str
    """Name in the format, such as F32."""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file, checked against the size of the file."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


def read_header(file: Any) -> Header:
    """Read and check the header of an open safetensors file: every tensor has the bytes that its shape and dtype need,
    and together they fill the file without gaps or overlaps.

    Raises:
        ValueError: if the file has another format or contradicts its header.
        OSError: if it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size < 8:
        raise ValueError("it is cut off before its header")
    length = int.from_bytes(read_exactly(file, 8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header would take {length} bytes, and at most {_MAX_HEADER} are allowed")
    if 8 + length > size:
        raise ValueError(f"it is cut off inside its header: it has {size} bytes, and the header ends at {8 + length}")
    content = _parsed(bytes(read_exactly(file, length)))
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the __metadata__ of its header is not a mapping of texts")
    entries = {name: _entry(name, entry, 8 + length) for name, entry in content.items()}
    _check_layout(entries, 8 + length, size)
    return Header(metadata, entries)


def _parsed(header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            raise ValueError(f"its header names {twice!r} twice")
        return found

    if not header.startswith(b"{"):
        raise ValueError("its header does not begin with {")
    try:
        content = json.loads(header.decode(), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON: {error.msg} at character {error.pos}") from error
    except UnicodeDecodeError as error:
        raise ValueError("its header is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("its header is nested too deep") from error
    return content


def _entry(name: str, content: Any, data_start: int) -> Entry:
    """Return one entry of a header, with offsets from the start of the file."""
    if not isinstance(content, dict):
        raise ValueError(f"its header entry for {name!r} is not an object")
    dtype, shape, offsets = (content.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _WIDTHS:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(map(is_count, shape)):
        raise ValueError(f"the shape of {name!r} is not a list of numbers of at least 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise ValueError(f"the data_offsets of {name!r} are not two numbers of at least 0")
    begin, end = offsets
    if end < begin:
        raise ValueError(f"{name!r} ends at byte {end}, before it begins at {begin}")
    needed = _bytes(shape, _WIDTHS[dtype], end - begin)
    if needed != end - begin:
        wanted = f"more than {end - begin}" if needed > end - begin else needed
        raise ValueError(f"{name!r} has {end - begin} bytes, and its shape {_short(shape)} of {dtype} needs {wanted}")
    return Entry(dtype, tuple(shape), data_start + begin, data_start + end)


def _bytes(shape: Sequence[int], width: int, limit: int) -> int:
    """Return the bytes of a tensor; above the limit, any number above it (a damaged header may claim any sides)."""
    total = 0 if 0 in shape else width
    for side in shape:
        total *= side
        if total > limit:
            break
    return total


def _short(shape: Sequence[int]) -> str:
    """Return a shape for a message; a damaged header may claim any number of dimensions."""
    return str(list(shape)) if len(shape) <= 8 else f"of {len(shape)} dimensions"


def _check_layout(entries: Mapping[str, Entry], data_start: int, size: int) -> None:
    """Reject tensors that overlap, and bytes that belong to no tensor."""
    end, before = data_start, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < end:
            raise ValueError(f"{name!r} begins at byte {entry.begin}, inside {before!r}, which ends at {end}")
        if entry.begin > end:
            raise ValueError(f"{entry.begin - end} bytes before {name!r} belong to no tensor")
        end, before = entry.end, name
    if size < end:
        raise ValueError(f"it is cut off: it has {size} of its {end} bytes")
    if size > end:
        raise ValueError(f"it has {size - end} bytes after its last tensor")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    data: Iterable[bytes | bytearray | memoryview],
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Write a safetensors file from a stream, flushed to the disk.

    Args:
        path: must not exist.
        tensors: dtype (a key of `DTYPES`) and shape of each tensor.
        data: the bytes of all tensors, one after the other, in portions of any size.
        metadata: stored in the header.

    Raises:
        OSError: if it cannot be written.
        CheckpointError: if the length of `data` does not match `tensors`, or if the header is too long for the format.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        code, width = DTYPES[dtype]
        begin, end = end, end + width * math.prod(shape)
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _MAX_HEADER:
        raise CheckpointError(f"{len(tensors)} tensors are too many for one safetensors file")
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for portion in (len(header).to_bytes(8, "little"), header):
            file.write(portion)
            digest.update(portion)
        for portion in data:
            file.write(portion)
            digest.update(portion)
            size += len(portion)
        file.flush()
        os.fsync(file.fileno())
    if size != end:
        raise CheckpointError(f"got {size} bytes instead of {end} for {path.name}")
    return Written(8 + len(header) + size, digest.hexdigest())
