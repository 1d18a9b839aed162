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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.errors import DataError
from swinv2_train.data.tar import DamagedError, members

INDEX_SUFFIX = ".index.jsonl"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff")
TEXT_EXTENSIONS = ("cls", "txt", "json")
_FORMAT = 1
_SAMPLE_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's split into key and extension


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
        for member in members(fd, name):
            match = _SAMPLE_NAME.match(member.name)
            if match is None or not member.regular:
                continue
            key, extension = match.group(1), match.group(2).lower()
            if not samples or samples[-1][0] != key:
                samples.append((key, {}))
            if member.offset + member.size > stat.st_size:
                samples.pop()  # the sample is incomplete, whatever of it came before
                raise DamagedError(f"it ends inside {member.name}")
            if _wanted(extension):
                samples[-1][1][extension] = (member.offset, member.size)
    except DamagedError as damage:
        truncated = str(damage)
    samples = [(key, found) for key, found in samples if image_extension(list(found)) is not None]
    if not samples:
        cut = f" (it is cut off: {truncated})" if truncated else ""
        raise DataError(f"{name} holds no sample with an image ({', '.join(IMAGE_EXTENSIONS)}){cut}")
    extensions = sorted({extension for _, found in samples for extension in found})
    rows = [[found.get(extension, (-1, 0)) for _, found in samples] for extension in extensions]
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
