"""Batches for training and evaluation: which rank gets which sample of which step, decoded and collated.

What a step contains hangs on the position of its samples alone (see order.py), so it is the same for any number of
ranks, workers and micro-batches, and a run resumes at any step by arithmetic.
"""

from __future__ import annotations

import itertools
import logging
import traceback
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from swinv2_train.data.current import working_on
from swinv2_train.data.decode import DecodeOptions, decode, same_depth
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.order import Group, SampleOrder, sample_rng
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Decoded, Transform
from swinv2_train.data.workers import Failure, WorkerPool

logger = logging.getLogger(__name__)
Batch = dict[str, Any]
Broken = tuple[int, str, str]
"""(position, "shard/key", reason) of a sample that could not be used."""
_MAX_REPLACEMENTS = 32


class TrainLoader:
    """Endless micro-batches of one rank, from batch `start_batch` on.

    Batch b holds the positions b * global_batch + [0, global_batch). Rank r takes the r-th of `world_size` equal parts
    of them, cut into micro-batches in order. Batches in `avoid` are passed over. A micro-batch is what `transform`
    gives, stacked, and

    - "position" int64 (B,): the sample positions,
    - "broken": list of (position, "shard/key", reason) of samples that could not be used and were replaced.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: SampleOrder,
        transform: Transform,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        start_batch: int,
        channels: int,
        seed: int,
        num_workers: int,
        prefetch_batches: int,
        avoid: Collection[int] = (),
        decoding: DecodeOptions | None = None,
    ) -> None:
        if order.num_samples != shards.num_samples:
            raise ValueError(f"the order is over {order.num_samples} samples, the shards hold {shards.num_samples}")
        if global_batch % (world_size * micro_batch):
            raise DataError(
                f"a global batch of {global_batch} does not divide into micro-batches of {micro_batch} on {world_size} "
                "ranks"
            )
        self._shards, self._order = shards, order
        self._fetched_until = -1
        positions = _train_positions(global_batch, micro_batch, rank, world_size, start_batch, frozenset(avoid))
        dataset = _TrainSamples(shards, order, transform, channels, seed, decoding)
        self._pool = WorkerPool(dataset, positions, num_workers=num_workers, prefetch_batches=prefetch_batches)
        self._read_ahead(start_batch * global_batch)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next micro-batch. Raises DataError, in one sentence, where the data cannot be read any further."""
        batch = next(self._pool)
        self._read_ahead(int(batch["position"][-1]))
        return batch

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the decoding processes, for logging."""
        return self._pool.worker_pids

    def close(self) -> None:
        """End the workers and stop reading ahead."""
        self._pool.close()
        self._shards.close()

    def _read_ahead(self, position: int) -> None:
        """Have the shards of this shuffle group and of the next one fetched, once per group."""
        if not self._shards.remote or position < self._fetched_until:
            return
        group = self._order.group_at(position)
        if self._fetched_until < 0:
            self._warn_if_too_large(group)
        self._fetched_until = group.first_position + group.num_samples
        following = self._order.group_at(self._fetched_until)
        self._shards.prefetch(self._shards.shards_of([*group.ranges, *following.ranges]))

    def _warn_if_too_large(self, group: Group) -> None:
        """A group is read in random order, so a cache that cannot hold its shards fetches them again and again."""
        needed = sum(self._shards.shards[i].size for i in self._shards.shards_of(group.ranges))
        if needed > self._shards.cache.max_bytes:
            logger.warning(
                "the remote shards of one shuffle group take %.3g GiB, more than the cache may hold (%.3g), and will "
                "be fetched many times: lower data.shuffle_samples or raise data.cache_gib",
                needed / 2**30,
                self._shards.cache.max_bytes / 2**30,
            )


class EvalLoader:
    """The first `num_samples` samples in fixed order, every rank getting equally many batches. Iterate again and again.

    A batch is what `transform` gives, stacked, and

    - "position" int64 (B,): the sample indices,
    - "valid" bool (B,): False for padding and for broken samples, which hold a copy of another sample,
    - "broken": list of (index, "shard/key", reason).
    """

    def __init__(
        self,
        shards: ShardSet,
        transform: Transform,
        *,
        num_samples: int | None,
        micro_batch: int,
        rank: int,
        world_size: int,
        channels: int,
        seed: int,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        decoding: DecodeOptions | None = None,
    ) -> None:
        self._shards = shards
        self.num_samples = min(num_samples or shards.num_samples, shards.num_samples)
        self._dataset = _EvalSamples(shards, transform, channels, seed, self.num_samples, decoding)
        self._workers = {"num_workers": num_workers, "prefetch_batches": prefetch_batches}
        count = -(-self.num_samples // (world_size * micro_batch))
        starts = [(batch * world_size + rank) * micro_batch for batch in range(count)]
        self._batches = [range(start, start + micro_batch) for start in starts]
        self._pool: WorkerPool | None = None

    def __len__(self) -> int:
        """Batches per rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass; its workers live as long as the pass, so that they cost nothing in between."""
        self.close()
        self._pool = pool = WorkerPool(self._dataset, self._batches, **self._workers)
        self._shards.prefetch(self._shards.shards_of([(0, self.num_samples)]))
        try:
            yield from pool
        finally:
            pool.close()

    def close(self) -> None:
        """End the workers of a pass that was not finished."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._shards.close()


def _train_positions(
    global_batch: int, micro_batch: int, rank: int, world_size: int, start_batch: int, avoid: frozenset[int]
) -> Iterator[range]:
    share = global_batch // world_size
    for batch in itertools.count(start_batch):
        if batch in avoid:
            continue
        first = batch * global_batch + rank * share
        for start in range(first, first + share, micro_batch):
            yield range(start, start + micro_batch)


class _Samples(Dataset[Any]):
    """Runs in the workers: positions -> batch. Whatever goes wrong comes back as one sentence."""

    def __init__(
        self, shards: ShardSet, transform: Transform, channels: int, seed: int, decoding: DecodeOptions | None = None
    ) -> None:
        self.shards, self.transform, self.channels, self.seed = shards, transform, channels, seed
        self.decoding = decoding

    def __getitems__(self, positions: Sequence[int]) -> Batch | Failure:
        try:
            return self.batch(positions)
        except DataError as error:
            return Failure(str(error))
        except Exception as error:
            return Failure(
                f"the transform of samples {positions[0]} to {positions[-1]} failed: {type(error).__name__}: {error}",
                traceback.format_exc(),
            )

    def batch(self, positions: Sequence[int]) -> Batch:
        raise NotImplementedError

    def decoded(self, index: int) -> Decoded:
        """Raises BrokenSample where sample `index` cannot be read or decoded."""
        working_on(index)
        raw = self.shards.read(index, texts=self.transform.texts)
        return Decoded(decode(raw.data, self.channels, self.decoding), raw)

    def name_of(self, index: int) -> str:
        """The shard and key of a sample, for messages."""
        return self.shards.name(index)


class _TrainSamples(_Samples):
    def __init__(
        self,
        shards: ShardSet,
        order: SampleOrder,
        transform: Transform,
        channels: int,
        seed: int,
        decoding: DecodeOptions | None = None,
    ) -> None:
        super().__init__(shards, transform, channels, seed, decoding)
        self.order = order
        self.last: tuple[int, Decoded] | None = None

    def batch(self, positions: Sequence[int]) -> Batch:
        partners = {position: self.transform.partner(position) for position in positions}
        needed = {*positions, *(partner for partner in partners.values() if partner is not None)}
        made, broken = {}, []
        for position in sorted(needed):
            made[position], failures = self.sample_at(position)
            # What is broken counts once, for the batch that it belongs to, however many others it is mixed into.
            broken += failures if position in partners else []
        self.last = None
        samples = [self.mixed(made, position, partner) for position, partner in partners.items()]
        return _collate(samples) | {"position": torch.tensor(list(positions)), "broken": broken}

    def mixed(self, made: dict[int, dict[str, Tensor]], position: int, partner: int | None) -> dict[str, Tensor]:
        if partner is None:
            return made[position]
        return self.transform.mix(made[position], made[partner], sample_rng(self.seed, position, "mix"))

    def sample_at(self, position: int) -> tuple[dict[str, Tensor], list[Broken]]:
        """The sample at a position, or the first of its stand-ins that can be used; and those that cannot."""
        broken: list[Broken] = []
        index = self.order.at(position)[1]
        for attempt in range(1, _MAX_REPLACEMENTS + 2):
            try:
                return self.transform(self.decoded_once(index), sample_rng(self.seed, position)), broken
            except BrokenSample as error:
                broken.append((position, self.shards.name(index), error.reason))
            index = self.order.replacement(position, attempt)
        _, name, reason = broken[-1]
        raise DataError(
            f"{_MAX_REPLACEMENTS + 1} samples in a row are broken, the last of them {name} ({reason}): "
            "check the shards with swinv2-data inspect"
        )

    def decoded_once(self, index: int) -> Decoded:
        """As `decoded`; repetitions of a sample lie side by side, so the last one is kept."""
        if self.last is None or self.last[0] != index:
            self.last = (index, self.decoded(index))
        return self.last[1]


class _EvalSamples(_Samples):
    def __init__(
        self,
        shards: ShardSet,
        transform: Transform,
        channels: int,
        seed: int,
        num_samples: int,
        decoding: DecodeOptions | None = None,
    ) -> None:
        super().__init__(shards, transform, channels, seed, decoding)
        self.num_samples = num_samples

    def batch(self, positions: Sequence[int]) -> Batch:
        broken: list[Broken] = []
        samples: list[dict[str, Tensor] | None] = []
        for index in positions:
            try:
                samples.append(self.sample(index) if index < self.num_samples else None)
            except BrokenSample as error:
                broken.append((index, self.shards.name(index), error.reason))
                samples.append(None)
        valid = [sample is not None for sample in samples]
        # Padding is a copy of a true sample, not zeros: what a loss makes of zeros may be NaN, and NaN * 0 stays NaN.
        padding = next((sample for sample in samples if sample is not None), None) or self.any_sample()
        batch = _collate([sample if sample is not None else padding for sample in samples])
        return batch | {"position": torch.tensor(list(positions)), "valid": torch.tensor(valid), "broken": broken}

    def sample(self, index: int) -> dict[str, Tensor]:
        """Raises BrokenSample where sample `index` cannot be used."""
        return self.transform(self.decoded(index), sample_rng(self.seed, index))

    def any_sample(self) -> dict[str, Tensor]:
        """The first sample that can be used, for a batch that has none of its own."""
        reason = ""
        for index in range(self.num_samples):
            try:
                return self.sample(index)
            except BrokenSample as error:
                reason = error.reason
        raise DataError(
            f"none of the {self.num_samples} evaluation samples can be used, the last of them "
            f"{self.shards.name(self.num_samples - 1)} ({reason}): check the shards with swinv2-data inspect"
        )


def _collate(samples: Sequence[dict[str, Tensor]]) -> Batch:
    return {key: torch.stack(same_depth([sample[key] for sample in samples])) for key in samples[0]}
