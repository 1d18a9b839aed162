"""Safetensors files, written from a stream and read in slices.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header (little-endian), the header
as JSON, padded with spaces to a multiple of 8 bytes, then the tensors without gaps, in the order of their offsets.

The library's own `save_file` is not used: before version 0.8 it holds Python's lock for the whole file, so that the
training beside a save stops, and with 0.8 nobody but the owner may read the file.
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
from swinv2_train.reading import is_count, parse_json

DTYPES = {"fp32": ("F32", 4), "bf16": ("BF16", 2), "fp16": ("F16", 2)}
"""Names of the dtypes: ours, that of safetensors, and bytes per element."""
_MAX_HEADER = 100_000_000
"""Bytes; the safetensors library refuses more."""


@dataclass(frozen=True)
class Written:
    """A finished file."""

    size: int
    sha256: str


def read_exactly(file: Any, count: int) -> bytearray:
    """So many bytes from an open binary file.

    Raises:
        ValueError: if it ends before.
    """
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = file.readinto(view[done:])
        if not got:
            raise ValueError("it ends early")
        done += got
    return data


def read_header(file: Any) -> tuple[int, dict[str, Any]]:
    """Where the data of an open safetensors file begins, and its header.

    Raises:
        ValueError: if it is not a safetensors file.
    """
    length = int.from_bytes(read_exactly(file, 8), "little")
    if length > _MAX_HEADER:
        raise ValueError("it is no safetensors file")
    if 8 + length > os.fstat(file.fileno()).st_size:  # before so much memory is taken
        raise ValueError("it ends early")
    header = parse_json(bytes(read_exactly(file, length)))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return 8 + length, header


def extent(entry: Any, dtype: str, count: int, data_size: int) -> int:
    """The first byte of a tensor in the data of a file, by its entry in the header, which is checked.

    Args:
        dtype: the code that it must have (see `DTYPES`).
        count: how many elements of four bytes it must have.
        data_size: bytes of data in the file.

    Raises:
        ValueError: if it has others.
    """
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    whole = isinstance(offsets, list) and len(offsets) == 2 and all(map(is_count, offsets))
    if not whole or entry.get("dtype") != dtype or offsets[1] - offsets[0] != 4 * count or offsets[1] > data_size:
        raise ValueError(f"it is not {count} numbers of {dtype}")
    return offsets[0]


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
        data: the bytes of all tensors one after the other, in any portions.
        metadata: goes into the header.

    Raises:
        OSError: if it cannot be written.
        CheckpointError: if `data` is not as long as `tensors` says, or the header too long for the format.
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
        raise CheckpointError(f"{size} bytes came instead of {end} for {path.name}")
    return Written(8 + len(header) + size, digest.hexdigest())
