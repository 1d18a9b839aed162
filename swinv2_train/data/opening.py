"""Opening of a set: find its shards and count their samples, with few operations and many of them at a time."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from swinv2_train.data.ask import REQUESTS, ask_all
from swinv2_train.data.card import Card, main_of
from swinv2_train.data.catalog import Catalog, Counted, catalog_path, place_of, read_catalog, write_catalog
from swinv2_train.data.errors import DataError, OtherSamples
from swinv2_train.data.index import EmptyShardError
from swinv2_train.data.index_store import ask_for_start, index_header, uploaded_index
from swinv2_train.data.remote import ShardCache
from swinv2_train.data.remote_file import RemoteFile, is_remote
from swinv2_train.data.samples import IMAGE, LeftOut, Scope
from swinv2_train.data.shard import Shard, listed_shard, manifests_of, remote_file
from swinv2_train.data.sources import ListedShard, Manifest, expand, manifest_place
from swinv2_train.text import counted

logger = logging.getLogger(__name__)
_LOCAL_THREADS = 8
_BATCH = 512
"""Remote shards that are asked for together, to bound the memory that their answers take."""


def find_shards(spec: Any, cache: ShardCache, scope: Scope) -> tuple[list[Shard], Card | None]:
    """Return the shards that `spec` names, and their dataset card if manifests describe all of them.

    A local shard in a manifest costs one operation, which compares its size; a remote one costs none. Others are
    counted from their index, which is built if need be; the next opening finds the counts in a catalog.

    Raises:
        OtherSamples: if the samples have another main member than `scope`.
        DataError: if a shard is missing or is not a tar, or no shard has a sample.
    """
    try:
        urls = expand(spec, cache, check=False)
        manifests = manifests_of(urls, cache)
        _refuse_other_samples(manifests, scope)
        described = all(_manifest_of(url, manifests) for url in urls)
        place = catalog_path(urls, cache, scope)
        opener = _Opener(manifests, cache, scope, {} if described else read_catalog(place))
        with ThreadPoolExecutor(REQUESTS if any(map(is_remote, urls)) else _LOCAL_THREADS) as pool:
            found = [
                one for start in range(0, len(urls), _BATCH) for one in opener.open(urls[start : start + _BATCH], pool)
            ]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or error} does not exist") from None
    except PermissionError as error:
        raise DataError(f"{error.filename} may not be read") from None
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from None
    shards = [one.shard for one in found]
    if not any(shard.num_samples for shard in shards):
        other = next((shard for shard in shards if shard.other_main), None)
        raise DataError(shards[0].empty) if other is None else OtherSamples(other.url, other.other_main, scope.main)
    if any(one.new for one in found):
        write_catalog(place, (Counted(one.shard, one.state) for one in found if one.state is not None))
    covered = all(_manifest_of(url, manifests) for url in urls)
    cards = [Card.from_json(manifest.card) for manifest in manifests.values() if manifest is not None]
    return shards, Card.merged(cards) if covered else None


def _refuse_other_samples(manifests: Mapping[str | None, Manifest | None], scope: Scope) -> None:
    """Refuse packed shards whose manifest counts samples with another main member. Raises OtherSamples."""
    for place, manifest in manifests.items():
        main = IMAGE if manifest is None else main_of(manifest.card)
        if manifest is not None and main != scope.main:
            raise OtherSamples(str(place), main, scope.main)


def _manifest_of(url: str, manifests: dict[str | None, Manifest | None]) -> Manifest | None:
    return manifests.get(manifest_place(url))


@dataclass(frozen=True)
class _Found:
    """A shard that was opened."""

    shard: Shard
    state: str | None = None
    """Time or version of its tar, for the catalog; None if it does not belong there."""
    new: bool = False
    """True if the catalog does not have it yet."""


@dataclass(frozen=True)
class _Opener:
    """Opens the shards of one set, in several threads."""

    manifests: dict[str | None, Manifest | None]
    cache: ShardCache
    scope: Scope
    catalog: Catalog

    def open(self, urls: Sequence[str], pool: ThreadPoolExecutor) -> list[_Found]:
        """Find some shards and count their samples.

        Raises:
            DataError: if one cannot be used. A shard without samples can: it is described as empty.
        """
        files = self._files(urls)
        starts = self._starts(files)
        return list(pool.map(lambda url: self._open(url, files.get(url), starts.get(url)), urls))

    def _files(self, urls: Sequence[str]) -> dict[str, RemoteFile]:
        """Return size and version of the remote shards that no manifest lists, as far as they can be asked together."""
        unlisted = [url for url in urls if is_remote(url) and not listed_shard(url, _manifest_of(url, self.manifests))]
        answers = ask_all(unlisted, lambda fs, path: fs._info(path))
        files = {}
        for url, info in zip(unlisted, answers, strict=True):
            with contextlib.suppress(DataError):  # reported when the shard is opened
                if info is not None:
                    files[url] = self.cache.described(url, info)
        return files

    def _starts(self, files: Mapping[str, RemoteFile]) -> dict[str, bytes]:
        """Return the starts of the indexes that were uploaded with shards that the catalog does not have."""
        new = [url for url, file in files.items() if self._known(url, file.size, file.version, file) is None]
        answers = ask_all([uploaded_index(url, self.scope.main) for url in new], ask_for_start)
        return {url: start for url, start in zip(new, answers, strict=True) if start is not None}

    def _known(self, url: str, size: int, state: str, file: RemoteFile | None) -> Shard | None:
        known = self.catalog.get(place_of(url))
        return known.of(url, size, state, file) if known is not None else None

    def _open(self, url: str, file: RemoteFile | None, start: bytes | None) -> _Found:
        """Find a shard and count its samples: by its manifest, the catalog, or its index, which is built if need be."""
        manifest = _manifest_of(url, self.manifests)
        listed = listed_shard(url, manifest)
        if file is None and is_remote(url):
            file = remote_file(url, manifest, self.cache)
        if file is not None:
            size, state = file.size, file.version
        else:
            stat = os.stat(url)
            size, state = stat.st_size, str(stat.st_mtime_ns)
        if listed is not None and size == listed.num_bytes:
            packed = (listed.fingerprint, listed.sha256)
            return _Found(Shard(url, size, listed.num_samples, None, file, *packed))
        shard = self._known(url, size, state, file)
        new = shard is None
        if shard is None:
            shard = self._counted(url, file, listed, start)
        if manifest is None and shard.fingerprint:
            logger.warning("%s comes from a swinv2-data pack that did not finish: run the same command again", url)
        return _Found(shard, state, new) if shard.num_samples else _Found(shard)

    def _counted(self, url: str, file: RemoteFile | None, listed: ListedShard | None, start: bytes | None) -> Shard:
        """Count the samples of a shard from its index."""
        try:
            header = index_header(url, self.cache, file, self.scope, start)
        except EmptyShardError as error:
            if listed is not None:
                raise DataError(
                    f"{error}, but its manifest counts {counted(listed.num_samples, 'sample')}: copy the shard again"
                ) from None
            empty = {"left_out": error.left_out, "empty": str(error), "other_main": error.other_main}
            return Shard(url, 0, 0, file=file, **empty)
        left_out = LeftOut.from_json(header.get("left_out"))
        record = header["extra"].get("pack", {})
        packed = (str(record.get("fingerprint", "")), str(record.get("sha256", "")))
        return Shard(url, header["tar_size"], header["num_samples"], header["truncated"], file, *packed, left_out)
