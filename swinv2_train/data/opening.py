"""Opening of a set: find its shards and count their samples, with few operations and many of them at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError
from swinv2_train.data.remote import ShardCache, is_remote
from swinv2_train.data.samples import Scope
from swinv2_train.data.shard import Shard, manifests_of, open_shard
from swinv2_train.data.sources import expand, manifest_place

_LOCAL_THREADS = 8
_REMOTE_THREADS = 64
"""Requests at a time: 40,000 of them with a latency of 30 ms then wait for 19 s."""


def find_shards(spec: Any, cache: ShardCache, scope: Scope) -> tuple[list[Shard], Card | None]:
    """Return the shards that `spec` names, and their dataset card if manifests describe all of them.

    A local shard in a manifest costs one operation, which compares its size; a remote one costs none. Others are
    counted from their index, which is built if need be.

    Raises:
        DataError: if a shard is missing or is not a tar, or no shard has a sample.
    """
    try:
        urls = expand(spec, cache, check=False)
        manifests = manifests_of(urls, cache)
        with ThreadPoolExecutor(_REMOTE_THREADS if any(map(is_remote, urls)) else _LOCAL_THREADS) as pool:
            shards = list(pool.map(lambda url: open_shard(url, manifests.get(manifest_place(url)), cache, scope), urls))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or error} does not exist") from None
    except PermissionError as error:
        raise DataError(f"{error.filename} may not be read") from None
    if not any(shard.num_samples for shard in shards):
        raise DataError(shards[0].empty)
    described = {place: manifest for place, manifest in manifests.items() if manifest is not None}
    covered = all(manifest_place(url) in described for url in urls)
    card = Card.merged(Card.from_json(manifest.card) for manifest in described.values()) if covered else None
    return shards, card
