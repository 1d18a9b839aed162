"""Batches for training and evaluation: which rank gets which sample of which step, decoded and collated.

The samples of a step depend only on their positions (see order.py), so they are the same for any number of
ranks, workers and micro-batches, and a run resumes at any step by arithmetic.
"""

from __future__ import annotations

import itertools
import logging
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.data import Dataset

from swinv2_train.data.batch import Batch, collate
from swinv2_train.data.current import working_on
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.file_set import FileSet
from swinv2_train.data.lanes import lane_reads
from swinv2_train.data.order import Order, sample_rng
from swinv2_train.data.sample import Sample
from swinv2_train.data.shard_parts import PART_SAMPLES
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.transform import Transform
from swinv2_train.data.workers import Failure, WorkerPool, Workers

logger = logging.getLogger(__name__)
Entries = dict[str, Any]
"""Result of a transform for one sample."""
Broken = tuple[int, str, str]
"""(position, "shard/key", reason) of a sample that could not be used."""
_MAX_REPLACEMENTS = 32
_MOST_READS = 1.15
"""Warn if all hosts together fetch the data set more often than this in an epoch."""


@dataclass(frozen=True)
class SampleSource:
    """Source of the samples, and how each is made: bytes -> image -> entries of a batch."""

    shards: ShardSet | FileSet
    transform: Transform
    channels: int
    """Channels of the images."""
    seed: int
    """Seed of everything random about a sample, together with its position."""
    decoding: DecodeOptions | None = None


@dataclass(frozen=True)
class Share:
    """Part of the samples that one rank gets, and the size of its micro-batches."""

    micro_batch: int
    rank: int = 0
    world_size: int = 1
    local_ranks: int = 1
    """Ranks on this host, which share its cache of remote shards."""
    connections: int = 8
    """Requests at a time that this rank makes to read remote shards ahead."""


class TrainLoader:
    """Endless micro-batches of one rank, starting with batch `start_batch`.

    Batch b contains the positions first_position + b * global_batch + [0, global_batch). Rank r takes its share of them
    (`Order.share`), cut into micro-batches in order. A micro-batch is what the transform returns, collated, and

    - "position" int64 (B,): the sample positions,
    - "broken": list of (position, "shard/key", reason) of samples that could not be used and were replaced.

    Args:
        first_position: of batch 0. With lanes it is a multiple of what they divide a batch into.
        avoid: batches that are skipped.
    """

    def __init__(
        self,
        source: SampleSource,
        order: Order,
        share: Share,
        *,
        global_batch: int,
        start_batch: int = 0,
        first_position: int = 0,
        avoid: Collection[int] = (),
        workers: Workers = Workers(),  # noqa: B008 (it is frozen)
    ) -> None:
        shards = source.shards
        if order.num_samples != shards.num_samples:
            raise ValueError(f"the order is over {order.num_samples} samples, the shards hold {shards.num_samples}")
        if global_batch % (share.world_size * share.micro_batch):
            raise DataError(
                f"a global batch of {global_batch} does not divide into micro-batches of {share.micro_batch} on "
                f"{share.world_size} ranks"
            )
        self._shards, self._order, self._share = shards, order, share
        self._ahead: dict[int, tuple[int, int]] = {}
        """By lane of this rank: a position in its current group, and the first position of the next one."""
        shards.declare(source.transform.members)
        shards.parts.samples = order.block_samples if order.lanes > 1 else PART_SAMPLES
        avoided = frozenset(avoid)
        batches = (batch for batch in itertools.count(start_batch) if batch not in avoided)

        def positions_of(batch: int) -> Sequence[int]:
            own = order.share(batch, global_batch, share.rank, share.world_size)
            return [first_position + position for position in own] if first_position else own

        shares = map(positions_of, batches)
        size = share.micro_batch
        positions = (part[start : start + size] for part in shares for start in range(0, len(part), size))
        self._pool = WorkerPool(_TrainSamples(source, order, global_batch, first_position), positions, workers)
        if shards.remote:
            self._read_ahead(positions_of(start_batch))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next micro-batch. Raises DataError with a one-sentence message if the data can no longer be
        read."""
        batch = next(self._pool)
        if self._shards.remote:
            self._read_ahead(batch["position"].tolist())
        return batch

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the decoding processes, for logging."""
        return self._pool.worker_pids

    def close(self) -> None:
        """End the workers and stop reading ahead."""
        self._pool.close()
        self._shards.close()

    def _read_ahead(self, positions: Sequence[int]) -> None:
        """Have the samples of the current shuffle groups of this rank's lanes fetched, and those of the next ones."""
        order, ahead = self._order, self._ahead
        firsts = {order.lane_of(position): position for position in reversed(positions)}
        due = {lane: position for lane, position in firsts.items() if lane not in ahead or position >= ahead[lane][1]}
        if not due:
            return
        begun = bool(ahead)
        ahead.update({lane: (position, order.following(position)) for lane, position in due.items()})
        places = [place for i in (0, 1) for place in (pair[i] for pair in ahead.values())]  # the current groups first
        sharers = self._share.local_ranks if order.lanes > 1 else 1  # the ranks of other orders read the same samples
        if not begun:
            self._warn(sharers)
        self._shards.prefetch(
            lambda: [part for place in places for part in order.group_at(place).ranges],
            connections=self._share.connections,
            share=1 / sharers,
        )

    def _warn(self, sharers: int) -> None:
        """Log what would make reading from a server slow, expensive, or less safe than it could be."""
        share, order = self._share, self._order
        if share.rank:  # all ranks would say the same, with numbers of their own
            return
        hosts = max(1, share.world_size // share.local_ranks)
        reads = hosts if order.lanes == 1 else lane_reads(order.lanes, hosts)
        if reads > _MOST_READS:
            logger.warning(
                "%d hosts share %d lanes, so they fetch %.3g times the data set in an epoch: set data.lanes to a "
                "multiple of the number of hosts, with an optim.global_batch that allows it",
                hosts,
                order.lanes,
                reads,
            )
        if self._shards.unverified:
            logger.warning(
                "an earlier version packed data.shards, whose indexes have no checksums, so damage on the way from the "
                "server may go unnoticed: run swinv2-data pack again, which adds them, and upload the indexes"
            )
        ranges = [part for position, _ in self._ahead.values() for part in order.group_at(position).ranges]
        # A group is read in random order, so a cache that is too small for it fetches it again and again.
        needed = self._shards.parts.num_bytes(ranges) * sharers
        if needed > self._shards.cache.max_bytes:
            logger.warning(
                "the remote samples of one shuffle group take %.3g GiB on this host, more than the cache may hold "
                "(%.3g), and will be fetched many times: lower data.shuffle_samples or raise data.cache_gib",
                needed / 2**30,
                self._shards.cache.max_bytes / 2**30,
            )


class EvalLoader:
    """The first `num_samples` samples (None: all) in fixed order, in the same number of batches on every rank.

    Each rank takes a stretch of them, so that every host fetches only its own part of remote shards.

    It can be iterated again and again. A batch is what the transform returns, collated, and

    - "position" int64 (B,): the sample indices,
    - "valid" bool (B,): False for padding and for broken samples, which hold a copy of another sample,
    - "broken": list of (index, "shard/key", reason),
    - the entries `also`.
    """

    def __init__(
        self,
        source: SampleSource,
        share: Share,
        *,
        num_samples: int | None = None,
        workers: Workers = Workers(),  # noqa: B008 (it is frozen)
        also: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._shards = shards = source.shards
        self.num_samples = min(num_samples or shards.num_samples, shards.num_samples)
        self._dataset = _EvalSamples(source, self.num_samples)
        self._workers = workers
        size = share.micro_batch
        count = -(-self.num_samples // (share.world_size * size))
        starts = [(share.rank * count + batch) * size for batch in range(count)]
        self._batches = [range(start, start + size) for start in starts]
        self._share, self._also = share, also
        self._pool: WorkerPool | None = None

    def __len__(self) -> int:
        """Batches per rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass; its workers live as long as the pass, so that they cost nothing in between."""
        self.close()
        self._pool = pool = WorkerPool(self._dataset, self._batches, self._workers)
        first, last = (min(place, self.num_samples) for place in (self._batches[0].start, self._batches[-1].stop))
        share = self._share
        self._shards.prefetch(lambda: [(first, last)], connections=share.connections, share=1 / share.local_ranks)
        try:
            for batch in pool:
                yield {**batch, **self._also}
        finally:
            pool.close()

    def close(self) -> None:
        """End the workers of a pass that was not finished."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._shards.close()


def fixed_batches(source: SampleSource, batches: Sequence[range], share: Share, workers: Workers) -> WorkerPool:
    """Return chosen batches of samples, in this order, without padding; entries as for `EvalLoader`.

    Args:
        batches: sample indices; at least one batch.
        share: its connections, and the ranks that share the cache, apply to remote shards.
    """
    if source.shards.remote:
        ranges = [(batch.start, batch.stop) for batch in batches]
        source.shards.prefetch(lambda: ranges, connections=share.connections, share=1 / share.local_ranks)
    return WorkerPool(_EvalSamples(source, source.shards.num_samples), batches, workers)


class _Samples(Dataset[Any]):
    """Runs in the workers: positions -> batch. Whatever goes wrong is returned as one sentence."""

    def __init__(self, source: SampleSource) -> None:
        self.source = source
        self.shards, self.transform, self.seed = source.shards, source.transform, source.seed

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

    def opened(self, index: int) -> Sample:
        """Read the members of sample `index`, which are decoded later. Raises BrokenSample if they cannot be read."""
        working_on(index)
        declared = self.transform.members
        raw = self.shards.read(index, declared)
        return Sample(raw, self.source.channels, self.source.decoding, declared)

    def collated(self, samples: Sequence[Entries]) -> Batch:
        return collate(samples, images=self.transform.images, ragged=self.transform.ragged)

    def name_of(self, index: int) -> str:
        """Return the shard and key of a sample, for messages."""
        return self.shards.name(index)


class _TrainSamples(_Samples):
    def __init__(self, source: SampleSource, order: Order, global_batch: int, first_position: int) -> None:
        super().__init__(source)
        self.order, self.global_batch = order, global_batch
        self.offset = first_position % global_batch
        """First position of a batch after a change of the global batch in the middle of a run; otherwise 0."""
        self.last: tuple[int, Sample] | None = None

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
        return self.collated(samples) | {"position": torch.tensor(list(positions)), "broken": broken}

    def mixed(self, made: dict[int, Entries], position: int, partner: int | None) -> Entries:
        if partner is None:
            return made[position]
        return self.transform.mix(made[position], made[partner], sample_rng(self.seed, position, "mix"))

    def sample_at(self, position: int) -> tuple[Entries, list[Broken]]:
        """Return the sample at a position, or its first usable replacement; and those that cannot be used."""
        broken: list[Broken] = []
        index = self.order.at(position)[1]
        for attempt in range(1, _MAX_REPLACEMENTS + 2):
            kept = self.last
            try:
                sample = self.opened_once(index)
                sample.position, sample.batch = position, (position - self.offset) // self.global_batch
                return self.transform(sample, sample_rng(self.seed, position)), broken
            except BrokenSample as error:
                self.last = kept  # the replacement of the previous repeat also serves this one
                broken.append((position, self.shards.name(index), error.reason))
            index = self.order.replacement(position, attempt)
        _, name, reason = broken[-1]
        raise DataError(
            f"{_MAX_REPLACEMENTS + 1} samples in a row are broken, the last of them {name} ({reason}): "
            "check the shards with swinv2-data inspect"
        )

    def opened_once(self, index: int) -> Sample:
        """Like `opened`; the repeats of a sample follow each other, so keep the last one with its decoded members.

        What a transform decodes for only one repeat, such as a clip, is decoded from the bytes and not kept.
        """
        if self.last is None or self.last[0] != index:
            self.last = (index, self.opened(index))
        return self.last[1]


class _EvalSamples(_Samples):
    def __init__(self, source: SampleSource, num_samples: int) -> None:
        super().__init__(source)
        self.num_samples = num_samples

    def batch(self, positions: Sequence[int]) -> Batch:
        broken: list[Broken] = []
        samples: list[Entries | None] = []
        for index in positions:
            try:
                samples.append(self.sample(index) if index < self.num_samples else None)
            except BrokenSample as error:
                broken.append((index, self.shards.name(index), error.reason))
                samples.append(None)
        valid = [sample is not None for sample in samples]
        # Padding is a copy of a real sample, not zeros: the loss of zeros may be NaN, and NaN * 0 stays NaN.
        padding = next((sample for sample in samples if sample is not None), None) or self.any_sample()
        batch = self.collated([sample if sample is not None else padding for sample in samples])
        return batch | {"position": torch.tensor(list(positions)), "valid": torch.tensor(valid), "broken": broken}

    def sample(self, index: int) -> Entries:
        """Raise BrokenSample if sample `index` cannot be used."""
        sample = self.opened(index)
        sample.position = index
        return self.transform(sample, sample_rng(self.seed, index))

    def any_sample(self) -> Entries:
        """Return the first usable sample, for a batch that has none of its own."""
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
