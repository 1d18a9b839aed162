"""Index of a tar shard: the positions of the members of every sample, so that any sample is one `pread` away.

The samples are those that `webdataset` sees: neighboring members whose names agree up to the first dot of the base
name. Images and plain text (cls, txt, json) are always indexed, arrays (npy, npz) in a tar without images, and all
other members once a transform asks for one; a pickle in a shard is never indexed, so never read.

On disk an index is two lines of JSON: a small header (enough to count samples) and the columns, each with its hash.
The header of an index with all members has one more entry, and the format is the same otherwise, so that every version
of this package reads the indexes of all others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_train.data.errors import DataError
from swinv2_train.data.image_files import ARRAY_EXTENSIONS, own_extensions
from swinv2_train.data.samples import IMAGE, VIDEO, LeftOut, SampleGroups, Scope
from swinv2_train.data.tar import BLOCK, DamagedError, checksum_fits, members, number, short_name
from swinv2_train.reading import UnreadableError, is_count, parse_json
from swinv2_train.writing import write_bytes

logger = logging.getLogger(__name__)

INDEX_SUFFIX = ".index.jsonl"
_FORMAT = 1
_CHUNK = 8 << 20
_IMAGES = Scope()


class EmptyShardError(DataError):
    """A shard without any sample.

    Args:
        other_main: main member that it has samples of instead; empty: neither.
    """

    def __init__(self, message: str, left_out: LeftOut | None = None, other_main: str = "") -> None:
        super().__init__(message)
        self.left_out, self.other_main = left_out or LeftOut(), other_main


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
    """Records of the packer about the shard: its part of the dataset card, its inputs."""
    left_out: LeftOut | None = None
    """Members that are not read; None in an index of an earlier version, which did not count them."""
    proven: bool = True
    """False for an index without a hash, which an earlier version wrote."""
    scope: Scope = _IMAGES
    """Samples and members that it has."""
    checksums: np.ndarray | None = None
    """(extensions, samples) int64: CRC-32 of the member's data, as packed; None if the packer did not record it."""
    decoders: list[str] = field(default_factory=list)
    """Extensions of own decoders that were known when it was built, which are those of images too. Not stored for
    packed shards, because the packer leaves nothing out."""

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

    def several_mains(self) -> Counter[tuple[str, ...]]:
        """Count the samples with several main members, by the extensions of these."""
        mains = self.scope.mains(self.extensions)
        rows = [i for i, extension in enumerate(self.extensions) if extension in mains]
        present = self.offsets[rows] >= 0
        counts: Counter[tuple[str, ...]] = Counter()
        for column in np.flatnonzero(present.sum(axis=0) > 1):
            counts[tuple(self.extensions[i] for i in np.array(rows)[present[:, column]])] += 1
        return counts

    def same_members(self, other: ShardIndex) -> bool:
        """Return whether the other index describes the same tar: its size, and name and place of every member.

        If only one of them has all members, images and texts are compared.
        """
        if self.scope != other.scope:
            return self._of_images().same_members(other._of_images())
        return (
            (self.tar_size, self.keys, self.extensions) == (other.tar_size, other.keys, other.extensions)
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.sizes, other.sizes)
        )

    def _of_images(self) -> ShardIndex:
        """Return the columns of an index of only images and texts."""
        mains = self.scope.mains(self.extensions)
        rows = [row for row, one in enumerate(self.extensions) if one in mains or _IMAGES.contains(one)]
        kept = [self.extensions[row] for row in rows]
        columns = {"offsets": self.offsets[rows], "sizes": self.sizes[rows], "checksums": None}
        return replace(self, extensions=kept, scope=_IMAGES, **columns)

    def header(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "tar_size": self.tar_size,
            "tar_mtime_ns": self.tar_mtime_ns,
            "num_samples": self.num_samples,
            "truncated": self.truncated,
            "extra": self.extra,
            "left_out": self.left_out.to_json() if self.left_out is not None else None,
            **_scope_to_json(self.scope),
            **({"decoders": self.decoders} if self.decoders and "pack" not in self.extra else {}),
        }


def build_index(name: str, fd: int, extra: dict[str, Any] | None = None, scope: Scope = _IMAGES) -> ShardIndex:
    """Read the headers of an open tar (ustar, PAX and GNU long names); `name` is for messages.

    Raises:
        DataError: if the file is not a plain tar.
        EmptyShardError: if it has no sample with an image (or a video, whatever `scope` asks for).
    """
    stat = os.fstat(fd)
    if stat.st_size == 0:
        raise EmptyShardError(f"{name} is an empty file (0 bytes)")
    groups = SampleGroups(scope)
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
        kinds = ", ".join((*scope.extensions, *(ARRAY_EXTENSIONS if scope.main == IMAGE else ())))
        raise EmptyShardError(
            f"{name} holds no sample with {main_member(scope)} ({kinds}){cut}{others}",
            groups.left_out,
            next((main for main in (IMAGE, VIDEO) if main != scope.main and groups.have(main)), ""),
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
        scope=scope,
        decoders=own_extensions(),
    )


def checksums(index: ShardIndex, fd: int) -> np.ndarray:
    """Return the CRC-32 of the data of every member in an open tar, (extensions, samples); 0 where there is none."""
    found = np.zeros_like(index.offsets)
    for row, sample in np.argwhere(index.offsets >= 0).tolist():
        start, left, crc = int(index.offsets[row, sample]), int(index.sizes[row, sample]), 0
        while left and (part := os.pread(fd, min(left, _CHUNK), start)):  # a video may be larger than the memory
            start, left, crc = start + len(part), left - len(part), zlib.crc32(part, crc)
        found[row, sample] = crc
    return found


def write_index(index: ShardIndex, path: Path) -> None:
    """Write atomically: a reader sees the old index or the new one, never half of one."""
    columns = {
        "keys": index.keys,
        "extensions": index.extensions,
        "offsets": index.offsets.tolist(),
        "sizes": index.sizes.tolist(),
    }
    if index.checksums is not None:
        columns["checksums"] = index.checksums.tolist()
    text = json.dumps(columns, separators=(",", ":"))
    header = {**index.header(), "columns_sha256": hashlib.sha256(text.encode()).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, f"{json.dumps({**header, 'sha256': _digest(header)})}\n{text}\n".encode(), flush=True)


def read_header(path: Path) -> dict[str, Any] | None:
    """Read the header of an index file; None if there is none, or none that can be used."""
    try:
        with path.open("rb") as file:
            return parse_header(file.readline())
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        return _ignored(path, error)


def parse_header(line: bytes) -> dict[str, Any] | None:
    """Parse the first line of an index; None if another version wrote it.

    Raises:
        UnreadableError: if it is damaged.
    """
    header = _checked_header(line)
    return header and {key: value for key, value in header.items() if key != "columns_sha256"}


def read_index(path: Path) -> ShardIndex | None:
    """Read a complete index file; None if there is none, or none that can be used."""
    try:
        return parse_index(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        return _ignored(path, error)


def parse_index(content: bytes, where: str) -> ShardIndex | None:
    """Parse the content of an index file; return None, with a warning that names `where`, if it cannot be used."""
    first, _, rest = content.partition(b"\n")
    try:
        header = _checked_header(first)
        return None if header is None else _checked_index(header, rest.partition(b"\n")[0])
    except UnreadableError as error:
        return _ignored(where, error)


def misplaced(index: ShardIndex, fd: int, start: int = 0, stop: int | None = None) -> str | None:
    """Look for the headers of an index's members in an open tar; return the first mismatch as text, None without one.

    It takes one read of 512 bytes per member, and shows a copy of another file, or one with a shifted part.

    Args:
        start, stop: bytes of the tar that the open file consists of; `stop` None: to the end.
    """
    stop = index.tar_size if stop is None else stop
    inside = ((index.offsets >= start) & (index.offsets < stop)).any(axis=0)
    end = start
    for sample in np.flatnonzero(inside).tolist():
        for extension, place in index.members(sample).items():
            wrong = _other_header(fd, index.keys[sample], extension, place, start)
            if wrong is not None:
                return wrong
            end = max(end, sum(place))
    return _other_end(fd, end, index.truncated is not None, start)


def misplaced_member(
    fd: int, key: str, extension: str, place: tuple[int, int], *, truncated: bool, start: int = 0
) -> str | None:
    """Compare the blocks before and behind one member of an open tar with its index; return a mismatch as text.

    Args:
        place: (offset, size) of the member.
        truncated: True if the tar ends early, so that anything may follow its last member.
        start: first byte of the tar that the open file has.
    """
    return _other_header(fd, key, extension, place, start) or _other_end(fd, sum(place), truncated, start)


def _other_header(fd: int, key: str, extension: str, place: tuple[int, int], start: int) -> str | None:
    offset, size = place
    name = f"{key}.{extension}"
    header = os.pread(fd, BLOCK, offset - BLOCK - start)
    if len(header) < BLOCK or not checksum_fits(header):
        return f"there is no header of {name} at byte {offset - BLOCK}"
    plain = name.isascii() and len(name) <= 100  # other names are in a PAX or GNU header before this one
    found = short_name(header).decode("utf-8", "surrogateescape")
    if plain and (found[: len(key) + 1], found[len(key) + 1 :].lower()) != (f"{key}.", extension):
        return f"the header at byte {offset - BLOCK} is of {found[:80]!r}, not of {name}"
    if number(header[124:136]) not in (size, 0):  # 0: a PAX record may contain it
        return f"{name} has another size"
    return None


def _other_end(fd: int, end: int, truncated: bool, start: int) -> str | None:
    """Look behind a member: neither padding and a header nor zeros after it show that its data is shifted.

    Nothing follows the last member of a part.
    """
    rest = os.pread(fd, -end % BLOCK + BLOCK, end - start)
    padding, following = rest[: -end % BLOCK], rest[-end % BLOCK :]
    zeros = following.count(0) == len(following)
    if padding.strip(b"\0") or not (zeros or checksum_fits(following) or truncated):
        return f"there is other data behind byte {end}, where a member ends"
    return None


def main_member(scope: Scope) -> str:
    """Return what every sample has, with its article, for messages."""
    return "an image" if scope.main == IMAGE else f"a {scope.main}"


def scope_of(header: dict[str, Any]) -> Scope:
    """Return the samples and members that the index with this header has; earlier versions indexed images and texts."""
    return Scope(header.get("main", IMAGE), header.get("members") == "all")


def _scope_to_json(scope: Scope) -> dict[str, str]:
    """Entries for a header; none for images and texts, so that these indexes are those of earlier versions."""
    main = {"main": scope.main} if scope.main != IMAGE else {}
    return main | ({"members": "all"} if scope.all_members else {})


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _ignored(path: Path | str, error: Exception) -> None:
    reason = error.strerror if isinstance(error, OSError) else error
    logger.warning("ignoring the index %s (%s)", path, reason)


def _checked_header(line: bytes) -> dict[str, Any] | None:
    """Parse the first line of an index; None if another version wrote it.

    Raises:
        UnreadableError: if it is damaged.
    """
    header = parse_json(line)
    if not isinstance(header, dict) or "format" not in header:
        raise UnreadableError("it is not an index")
    if header["format"] != _FORMAT:
        return None
    stated = header.pop("sha256", None)  # an earlier version wrote none
    if stated is not None and stated != _digest(header):
        raise UnreadableError("its header has been changed (its hash differs)")
    size, count, extra, truncated = (header.get(name) for name in ("tar_size", "num_samples", "extra", "truncated"))
    numbers = is_count(size, 2**63 - 1) and is_count(count) and isinstance(header.get("tar_mtime_ns"), int)
    if not numbers or not 0 < count * BLOCK <= size:
        raise UnreadableError("its header has impossible numbers")
    if not isinstance(extra, dict) or not all(isinstance(extra.get(key, {}), dict) for key in ("pack", "card")):
        raise UnreadableError("its header has an impossible entry extra")
    if not isinstance(truncated, str | None):
        raise UnreadableError("its header has an impossible entry truncated")
    if header.get("main", IMAGE) not in (IMAGE, VIDEO) or header.get("members", "all") != "all":
        raise UnreadableError("its header has an impossible entry main or members")
    if not isinstance(header.get("decoders", []), list):
        raise UnreadableError("its header has an impossible entry decoders")
    return header


def _checked_index(header: dict[str, Any], line: bytes) -> ShardIndex:
    """Build an index from its header and its line of columns, none of whose numbers is trusted.

    Raises:
        UnreadableError: if they are damaged or contradict each other.
    """
    stated = header.get("columns_sha256")
    if stated is not None and stated != hashlib.sha256(line).hexdigest():
        raise UnreadableError("its columns have been changed (their hash differs)")
    columns = parse_json(line)
    try:
        keys, extensions = columns["keys"], columns["extensions"]
        offsets, sizes = (_whole_numbers(columns[name]) for name in ("offsets", "sizes"))
        sums = _whole_numbers(columns["checksums"]) if "checksums" in columns else None
        names = [name for name in (*keys, *extensions) if not isinstance(name, str)]
        shape = (len(extensions), len(keys))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UnreadableError(f"its columns cannot be read ({type(error).__name__})") from error
    if names or offsets.shape != shape or sizes.shape != shape or shape[1] != header["num_samples"]:
        raise UnreadableError("its columns do not fit together")
    if sums is not None and (sums.shape != shape or ((sums < 0) | (sums >> 32 > 0)).any()):
        raise UnreadableError("its columns have impossible checksums")
    absent = offsets == -1
    first, last = offsets >= BLOCK, sizes <= header["tar_size"] - offsets
    if not np.all(absent | (first & (offsets % BLOCK == 0) & (sizes >= 0) & last)):
        raise UnreadableError("its columns have impossible offsets")
    scope = scope_of(header)
    mains = scope.mains(extensions)
    main = [number for number, extension in enumerate(extensions) if extension in mains]
    if len(set(extensions)) < len(extensions) or absent[main].all(axis=0).any():
        raise UnreadableError(f"its columns have a sample without {main_member(scope)}")
    return ShardIndex(
        header["tar_size"],
        header["tar_mtime_ns"],
        keys,
        extensions,
        offsets,
        sizes,
        header.get("truncated"),
        header["extra"],
        LeftOut.from_json(header.get("left_out")),
        proven=stated is not None,
        scope=scope,
        checksums=sums,
        decoders=header.get("decoders", []),
    )


def _whole_numbers(rows: Any) -> np.ndarray:
    array = np.array(rows)
    if array.dtype.kind != "i":  # numpy would convert fractions and booleans to integers
        raise TypeError
    return array.astype(np.int64)
