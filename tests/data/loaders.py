"""Loaders from plain values."""

from __future__ import annotations

from collections.abc import Collection

from swinv2_train.data.loader import EvalLoader, SampleSource, Share, TrainLoader
from swinv2_train.data.order import Order
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform
from swinv2_train.data.workers import Workers


def train_loader(
    shards: ShardSet,
    order: Order,
    transform: Transform,
    *,
    global_batch: int,
    start_batch: int = 0,
    first_position: int = 0,
    avoid: Collection[int] = (),
    **changes: int,
) -> TrainLoader:
    """A training loader of one rank of one, without workers, unless `changes` says otherwise."""
    return TrainLoader(
        _source(shards, transform, changes),
        order,
        _share(changes),
        global_batch=global_batch,
        start_batch=start_batch,
        first_position=first_position,
        avoid=avoid,
        workers=Workers(**changes),
    )


def eval_loader(
    shards: ShardSet, transform: Transform, *, num_samples: int | None = None, **changes: int
) -> EvalLoader:
    """The same for an evaluation."""
    source, share = _source(shards, transform, changes), _share(changes)
    return EvalLoader(source, share, num_samples=num_samples, workers=Workers(**changes))


def _source(shards: ShardSet, transform: Transform, changes: dict[str, int]) -> SampleSource:
    return SampleSource(shards, transform, changes.pop("channels", 3), changes.pop("seed", 0))


def _share(changes: dict[str, int]) -> Share:
    return Share(changes.pop("micro_batch"), changes.pop("rank", 0), changes.pop("world_size", 1))
