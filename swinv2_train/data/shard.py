"""One shard of a set: its location, and what is known about it before it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import RemoteFile, is_remote
from swinv2_train.data.samples import LeftOut
from swinv2_train.data.sources import ListedShard, Manifest, manifest_place, manifest_url, parse_manifest


@dataclass(frozen=True)
class Shard:
    """Location of a shard, and what was known about it when the set was opened."""

    url: str
    size: int
    """Bytes of the tar."""
    num_samples: int
    truncated: str | None = None
    """Why the shard ends early, if it does."""
    file: RemoteFile | None = None
    """File to fetch if the shard is remote."""
    fingerprint: str = ""
    """Packer's fingerprint of its inputs; empty if another program wrote it."""
    sha256: str = ""
    """Hash of the tar, as the packer recorded it; empty if it did not."""
    left_out: LeftOut | None = None
    """Members that are not read, as far as they were counted when the set was opened."""
    empty: str | None = None
    """Why the shard has no samples, if it has none."""
    other_main: str = ""
    """Main member that it has samples of instead, if it has none; empty: neither."""

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]

    @property
    def content(self) -> str:
        """Description of its content without reading it, in words `kind:value`.

        Two descriptions of the same content agree in every kind that both have: its size in bytes, the packer's hash
        and fingerprint, and the version that a server gives to this URL, such as its ETag. Equal hashes mean equal
        content, whatever the fingerprints are: those change with the time of an image's file.
        """
        words = [f"bytes:{self.size}"]
        if self.sha256:
            words.append(f"sha256:{self.sha256[:16]}")
        if self.fingerprint:
            words.append(f"packed:{self.fingerprint[:12]}")
        elif self.file is not None and self.file.version:
            place, version = (
                hashlib.sha256(text.encode()).hexdigest()[:12]
                for text in (self.url.partition("?")[0], self.file.version)
            )
            words.append(f"version-{place}:{version}")
        return " ".join(words)


def manifests_of(urls: Sequence[str], cache: ShardCache) -> dict[str | None, Manifest | None]:
    """Return the packer's manifests of these shards, by `manifest_place`; None if there is none at a place.

    Each is read once, with the query of the first of its shards.
    """
    found: dict[str | None, Manifest | None] = {}
    for url in urls:
        place, source = manifest_place(url), manifest_url(url)
        if place is None or source is None or place in found:
            continue
        content = cache.fetch_bytes(source) if is_remote(source) else _content(Path(source))
        found[place] = parse_manifest(content, source) if content is not None else None
    return found


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def remote_file(url: str, manifest: Manifest | None, cache: ShardCache) -> RemoteFile:
    """Return the version of a remote shard that its manifest names, or without a manifest the server."""
    listed = listed_shard(url, manifest)
    if listed is None:
        return cache.stat(url)
    return RemoteFile(url, listed.num_bytes, listed.fingerprint, from_manifest=True, sha256=listed.sha256)


def listed_shard(url: str, manifest: Manifest | None) -> ListedShard | None:
    """Return the description of a shard in its manifest; None if it is not described."""
    return manifest.shards.get(url.partition("?")[0].rpartition("/")[2]) if manifest is not None else None
