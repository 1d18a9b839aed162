"""Counts of shards that were opened before, so that a set without a manifest opens with one operation per shard.

One small file per set in the cache directory. An entry is used while size and time of a local tar, or size and version
of a remote one, are those of then; everything else is counted from the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swinv2_train.data.image_files import own_extensions
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import RemoteFile
from swinv2_train.data.samples import LeftOut, Scope
from swinv2_train.data.shard import Shard
from swinv2_train.reading import UnreadableError, is_count, read_object
from swinv2_train.writing import write_bytes

logger = logging.getLogger(__name__)
_FORMAT = 1


@dataclass(frozen=True)
class Counted:
    """A shard that was counted from its index, and the state of its tar at that time."""

    shard: Shard
    state: str
    """Time of a local tar, or version of a remote one."""

    def of(self, url: str, size: int, state: str, file: RemoteFile | None) -> Shard | None:
        """Return the shard, at its current URL, if its tar has the same size and state; else None."""
        same = (self.shard.size, self.state) == (size, state)
        return replace(self.shard, url=url, file=file) if same else None


def read_catalog(path: Path) -> dict[str, Counted]:
    """Return the entries of a catalog by the shard's path, without any query; none if it is missing or damaged."""
    try:
        content = read_object(path)
        if content.get("format") != _FORMAT:
            return {}
        if content.get("sha256") != _digest(content.get("shards")):
            raise UnreadableError("its hash differs")
        return {entry[0]: _counted(*entry) for entry in content["shards"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:  # UnreadableError is a ValueError
        logger.warning("ignoring the catalog %s (%s); counting the shards again", path, error)
        return {}


def write_catalog(path: Path, counted: Iterable[Counted]) -> None:
    """Write a catalog; without a place for it, the next opening takes longer, and nothing else changes."""
    shards = [
        [
            place_of(entry.shard.url),
            entry.shard.size,
            entry.state,
            entry.shard.num_samples,
            entry.shard.truncated,
            entry.shard.fingerprint,
            entry.shard.sha256,
            entry.shard.left_out.to_json() if entry.shard.left_out else None,
        ]
        for entry in counted
    ]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "sha256": _digest(shards), "shards": shards}
        write_bytes(path, json.dumps(content, separators=(",", ":")).encode())


def catalog_path(urls: Sequence[str], cache: ShardCache, scope: Scope) -> Path:
    """Return the place of the catalog of a set."""
    # The decoders of the user decide what is an image.
    digest = hashlib.sha256(json.dumps([scope.main, scope.all_members, _FORMAT, *own_extensions()]).encode())
    for url in urls:
        digest.update(os.fsencode(place_of(url)) + b"\0")
    return cache.directory / "opened" / f"{digest.hexdigest()[:20]}.json"


def place_of(url: str) -> str:
    """Return the key of a shard in a catalog: its absolute path, or its URL without a signature."""
    return url.partition("?")[0] if "://" in url else os.path.abspath(url)


def _digest(shards: Any) -> str:
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def _counted(
    url: str, size: int, state: str, num_samples: int, truncated: str | None, fingerprint: str, sha256: str, left: Any
) -> Counted:
    if not (is_count(size) and is_count(num_samples) and num_samples):
        raise UnreadableError("it has an impossible number")
    left_out = None if left is None else LeftOut.from_json(left)
    return Counted(Shard(url, size, num_samples, truncated, None, fingerprint, sha256, left_out), state)


Catalog = Mapping[str, Counted]
