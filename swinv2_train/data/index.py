"""The index of a tar shard: where the members of every sample lie, so that any sample is one `pread` away.

The samples are those that `webdataset` sees: neighbouring members whose names agree up to the first dot of the base
name. Only images and plain text (cls, txt, json) are taken in; a pickle in a shard is never indexed, so never read.

On disk an index is two lines of JSON: a small header (enough to count samples) and the columns.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import IMAGE_EXTENSIONS
from swinv2_train.data.samples import LeftOut, SampleGroups
from swinv2_train.data.tar import DamagedError, members

INDEX_SUFFIX = ".index.jsonl"
_FORMAT = 1


class EmptyShardError(DataError):
    """A shard without any sample that has an image."""

    def __init__(self, message: str, left_out: LeftOut | None = None) -> None:
        super().__init__(message)
        self.left_out = left_out or LeftOut()


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
    left_out: LeftOut | None = None
    """Members that are not read; None in an index of an earlier version, which did not count them."""

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

    def same_members(self, other: ShardIndex) -> bool:
        """Return whether the other index describes the same tar: its size, and name and place of every member."""
        return (
            (self.tar_size, self.keys, self.extensions) == (other.tar_size, other.keys, other.extensions)
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.sizes, other.sizes)
        )

    def header(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "tar_size": self.tar_size,
            "tar_mtime_ns": self.tar_mtime_ns,
            "num_samples": self.num_samples,
            "truncated": self.truncated,
            "extra": self.extra,
            "left_out": self.left_out.to_json() if self.left_out is not None else None,
        }


def build_index(name: str, fd: int, extra: dict[str, Any] | None = None) -> ShardIndex:
    """Read the headers of an open tar (ustar, PAX and GNU long names); `name` is for messages.

    Raises:
        DataError: if the file is not a plain tar.
        EmptyShardError: if it has no sample with an image.
    """
    stat = os.fstat(fd)
    if stat.st_size == 0:
        raise EmptyShardError(f"{name} is an empty file (0 bytes)")
    groups = SampleGroups()
    truncated = None
    try:
        for member in members(fd, name):
            if member.offset + member.size > stat.st_size:
                groups.drop_last(member.name)  # the sample is incomplete, whatever of it came before
                raise DamagedError(f"it ends inside {member.name}")
            groups.add(member)
    except DamagedError as damage:
        truncated = str(damage)
    samples = groups.finish()
    if not samples:
        cut = f" (it is cut off: {truncated})" if truncated else ""
        others = "".join(f"; {line}" for line in groups.left_out.lines())
        raise EmptyShardError(
            f"{name} holds no sample with an image ({', '.join(IMAGE_EXTENSIONS)}){cut}{others}", groups.left_out
        )
    extensions = sorted({extension for sample in samples for extension in sample.members})
    rows = [[sample.members.get(extension, (-1, 0)) for sample in samples] for extension in extensions]
    table = np.array(rows, dtype=np.int64)
    return ShardIndex(
        tar_size=stat.st_size,
        tar_mtime_ns=stat.st_mtime_ns,
        keys=[sample.key for sample in samples],
        extensions=extensions,
        offsets=table[..., 0].copy(),
        sizes=table[..., 1].copy(),
        truncated=truncated,
        extra=extra or {},
        left_out=groups.left_out,
    )


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
        LeftOut.from_json(header.get("left_out")),
    )
