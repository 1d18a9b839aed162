"""Origin of the shards in a directory: the source and the split that the packer recorded.

The record is kept twice: in the index of each shard and in the manifest of its split. An index that was lost, or built
again after a copy, therefore does not turn packed shards into foreign ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from swinv2_train.data.errors import DataError
from swinv2_train.data.index import ShardIndex, build_index, checksums, read_header, read_index, write_index
from swinv2_train.data.index_rows import write_rows
from swinv2_train.data.index_store import index_path, rows_path
from swinv2_train.data.samples import IMAGE, VIDEO, Scope
from swinv2_train.data.sources import MANIFEST_SUFFIX, Manifest, manifest_url, parse_manifest


@dataclass(frozen=True)
class Origin:
    """Inputs that a shard was packed from."""

    source: str | None
    """Its source; None if an earlier version did not record it and the index is lost."""
    split: dict[str, Any] | None = None
    """The rule that divided the source; None for shards of earlier versions."""
    annotated_by: str | None = None
    """`Source.annotated_by`; None for shards of earlier versions."""


def packed_header(tar: Path) -> dict[str, Any] | None:
    """Return the header of the index that the packer wrote next to a shard of images or videos; None without one."""
    return read_header(_index(tar))


def _index(tar: Path) -> Path:
    """Return the place of the index next to a shard: that of videos if it is the only one."""
    of_videos = index_path(tar, VIDEO)
    return of_videos if of_videos.exists() and not index_path(tar).exists() else index_path(tar)


def _write(index: ShardIndex, tar: Path) -> None:
    write_index(index, index_path(tar, index.scope.main))
    write_rows(index, rows_path(tar, index.scope.main))


def origins(out: Path) -> dict[Path, Origin]:
    """Find the shards in a directory that `swinv2-data pack` wrote, and what they were made from."""
    manifests: dict[str, Manifest | None] = {}
    found = {}
    for tar in sorted(out.glob("*.tar")):
        place = manifest_url(str(tar))
        if place is not None and place not in manifests:
            manifests[place] = known_manifest(Path(place))
        origin = _origin(tar, manifests.get(place or ""))
        if origin is not None:
            found[tar] = origin
    return found


def keys_of(tar: Path) -> list[str]:
    """Return the keys of a shard's samples; none if it cannot be read."""
    index = read_index(_index(tar))
    if index is not None and index.tar_size == tar.stat().st_size:
        return index.keys
    with tar.open("rb") as file:
        for main in (IMAGE, VIDEO):
            with contextlib.suppress(DataError):
                return build_index(str(tar), file.fileno(), scope=Scope(main)).keys
    return []


def confirmed(tar: Path, sha256: str) -> bool:
    """Return whether a shard is the one that was packed, although it was copied or touched since; note its new time.

    Args:
        sha256: recorded hash of its bytes. Without one, the names and places of its members are compared.
    """
    index = read_index(_index(tar))
    if index is None or index.tar_size != tar.stat().st_size:
        return False
    with tar.open("rb") as file:
        time = os.fstat(file.fileno()).st_mtime_ns
        if sha256:
            same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        else:
            try:
                now = build_index(str(tar), file.fileno(), scope=index.scope)
            except DataError:
                return False
            same = now.truncated is None and now.same_members(index)
    if same:
        _write(replace(index, tar_mtime_ns=time), tar)
    return same


def add_checksums(tar: Path) -> None:
    """Record the checksums of the members in the index of a finished shard, if an earlier version packed it."""
    index = read_index(_index(tar))
    if index is None or index.checksums is not None:
        return
    with tar.open("rb") as file:
        index.checksums = checksums(index, file.fileno())
    _write(index, tar)


def check_other_splits(out: Path, splits: Collection[str], class_names: list[str] | None) -> None:
    """Check that the other splits in a directory number their classes as `splits` would.

    Raises:
        DataError: if they do not, because a model that is trained on one split cannot be evaluated on the other.
    """
    for place in sorted(out.glob(f"*{MANIFEST_SUFFIX}")):
        split, found = place.name.removesuffix(MANIFEST_SUFFIX), known_manifest(place)
        before = found.card.get("classes", {}).get("names") if found is not None else None
        if split in splits or not before or not class_names or before == class_names:
            continue
        number = next(n for n, pair in enumerate(zip_longest(before, class_names)) if pair[0] != pair[1])
        one, other = (repr(names[number]) if number < len(names) else "missing" for names in (before, class_names))
        raise DataError(
            f"class {number} of {split} in {out} is {one}, and of {' and '.join(splits)} it would be {other}: "
            f"--class-names {place} numbers the classes alike; or choose another directory for another set of classes"
        )


def _origin(tar: Path, manifest: Manifest | None) -> Origin | None:
    header = packed_header(tar)
    record = header["extra"].get("pack") if header else None
    if record:
        return Origin(record["source"], record.get("split"), record.get("annotated_by"))
    listed = manifest.shards.get(tar.name) if manifest else None
    if manifest is None or listed is None or listed.num_bytes != os.stat(tar).st_size:
        return None
    return Origin(*(manifest.pack.get(key) for key in ("source", "split", "annotated_by")))


def known_manifest(path: Path) -> Manifest | None:
    """Return a manifest of the packer; None if there is none, or a damaged one, which the packer writes again."""
    assert path.name.endswith(MANIFEST_SUFFIX)
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except (OSError, DataError):
        return None
