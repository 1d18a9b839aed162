"""Shards that two sets have in common: samples used for training are useless as held-out ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from swinv2_train.data.remote_file import is_remote
from swinv2_train.data.shard import Shard
from swinv2_train.data.shards import ShardSet


def shared_shards(first: ShardSet, second: ShardSet) -> list[str]:
    """Return the names of the shards of the second set that are in the first as well.

    A shard is the same if its place is, links followed, or if name, size, and number of samples are, as of a copy.
    Links are followed only for shards of the same size and number of samples as one of the other set.
    """
    common = set(_sizes(first)) & set(_sizes(second))
    resolved = cache(os.path.realpath)  # of a folder, once for all of its shards
    known = {
        identity
        for shard, size in zip(first.shards, _sizes(first), strict=True)
        if size in common
        for identity in _identities(shard, resolved)
    }
    return [
        shard.name
        for shard, size in zip(second.shards, _sizes(second), strict=True)
        if size in common and known.intersection(_identities(shard, resolved))
    ]


def _sizes(shards: ShardSet) -> list[tuple[int, int]]:
    table = shards.shards
    return list(zip(table.sizes.tolist(), table.num_samples.tolist(), strict=True))


def overlap_warning(key: str, second: ShardSet, other_key: str, first: ShardSet) -> list[str]:
    """Return a line if the shards of a key that measures are among those of a key that learns; else nothing.

    Args:
        key: the key of `second`, such as data.eval_shards.
        other_key: the key of `first`, such as data.shards.
    """
    shared = shared_shards(first, second)
    if not shared:
        return []
    count = "all" if len(shared) == len(second.shards) else f"{len(shared)} of {len(second.shards)}"
    named = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
    return [
        f"{key}: {count} of its shards ({named}) are also in {other_key}, so its results are those of samples that "
        "were learned; hold samples out with swinv2-data pack --eval-share"
    ]


def _identities(shard: Shard, resolved: Callable[[str], str]) -> list[tuple[str, ...]]:
    if is_remote(shard.url):
        place = shard.url.partition("?")[0]
    elif os.path.islink(shard.url):
        place = os.path.realpath(shard.url)
    else:
        folder, name = os.path.split(shard.url)
        place = os.path.join(resolved(folder), name)
    return [("place", place), ("copy", shard.name, str(shard.size), str(shard.num_samples))]
