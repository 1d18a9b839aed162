"""Order of samples: a pure function from a position in the endless stream to a sample of the data set.

`SampleOrder` is that of runs that began with an earlier version; new runs use `lanes.py`, which builds on this file.

Nothing is stored per sample, so jumping to any position costs the same at a thousand and at a billion samples, and the
order is the same for any number of ranks and workers. An epoch is built as follows:

1. The indices 0..N-1 (all shards one after the other) are rotated by a random offset and cut into blocks.
2. The blocks are permuted over the entire data set, which determines the order of its parts.
3. Consecutive blocks form groups, and the samples of a group are permuted among themselves.

Both permutations are Feistel networks (Luby and Rackoff 1988) over a x b >= n cells with cycle walking (Black and
Rogaway 2002), keyed by seed, epoch and group.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.random.bit_generator import ISeedSequence

_MASK = (1 << 64) - 1
_ROUNDS = 8


@dataclass(frozen=True)
class Group:
    """Neighbouring positions whose samples are shuffled among themselves."""

    first_position: int
    num_samples: int
    """Number of positions; repeated samples count as often as they are repeated."""
    ranges: list[tuple[int, int]]
    """Half-open ranges of sample indices that the group draws from, without overlap."""


@lru_cache(maxsize=512)
def keys(*parts: object) -> tuple[int, ...]:
    """Eight 64-bit keys from a tuple of plain values; the same on every machine and in every Python."""
    return struct.unpack("<8Q", hashlib.blake2b(repr(parts).encode(), digest_size=64).digest())


def _mix(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, and Flood 2014): 64 bits to 64 well-mixed bits."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permute(value: int, size: int, keys: tuple[int, ...]) -> int:
    """Return the place of `value` in the permutation of 0..size-1 that `keys` select."""
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    while True:
        row, column = divmod(value, columns)
        for i in range(0, _ROUNDS, 2):
            row = (row + _mix(column ^ keys[i])) % rows
            column = (column + _mix(row ^ keys[i + 1])) % columns
        value = row * columns + column
        if value < size:  # else walk on along the cycle, which ends inside: the network is a bijection of all cells
            return value


def sample_rng(seed: int, position: int, stream: str = "sample") -> np.random.Generator:
    """Return the source of all randomness of one sample, which depends only on the seed, the position, and the
    stream."""
    key = np.array([keys(stream, seed)[0], position], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(_Key(key)))


class _Key(ISeedSequence):
    """Hands a key to Philox. Its argument `key` means the same, but then it draws entropy in vain, which takes longer
    than all else here."""

    def __init__(self, key: np.ndarray) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        return self._key


class Order(Protocol):
    """Endless order of samples: `SampleOrder`, or `LaneOrder` of lanes.py."""

    num_samples: int
    block_samples: int
    """Samples in a row that are read together."""
    lanes: int
    """Parts of the order that are shuffled apart from each other."""

    def at(self, position: int) -> tuple[int, int]: ...
    def replacement(self, position: int, attempt: int) -> int: ...
    def group_at(self, position: int) -> Group: ...
    def following(self, position: int) -> int: ...
    def lane_of(self, position: int) -> int: ...
    def share(self, batch: int, global_batch: int, rank: int, world_size: int) -> Sequence[int]: ...


class SampleOrder:
    """Endless shuffled order over `num_samples` samples; every epoch visits each of them exactly once.

    A larger `shuffle_samples` mixes better. A larger `block_samples` (default: a 32nd of it) reads the data set in
    longer stretches, so that a group touches fewer shards.

    With `repeats` (repeated augmentation), that many positions in a row contain the same sample, and an epoch of the
    order is longer by that factor.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        *,
        shuffle_samples: int = 131072,
        block_samples: int | None = None,
        repeats: int = 1,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: an order needs at least one sample")
        if shuffle_samples < 1:
            raise ValueError(f"shuffle_samples={shuffle_samples}: must be at least 1")
        if repeats < 1:
            raise ValueError(f"repeats={repeats}: must be at least 1")
        block = block_samples if block_samples is not None else shuffle_samples // 32
        self.num_samples, self.seed, self.repeats = num_samples, seed, repeats
        self.block_samples = min(max(block, 1), num_samples)
        self.lanes = 1
        self._num_blocks, self._rest = divmod(num_samples, self.block_samples)
        # A last group much smaller than the others would mix badly, so the blocks are dealt out evenly.
        self._num_groups = max(1, round(self._num_blocks * self.block_samples / shuffle_samples))
        self._num_groups = min(self._num_groups, self._num_blocks)
        self._blocks_per_group, self._larger_groups = divmod(self._num_blocks, self._num_groups)

    def at(self, position: int) -> tuple[int, int]:
        """Epoch and sample index at a position (0, 1, 2, ... without end)."""
        return self._at(position // self.repeats)

    def _at(self, draw: int) -> tuple[int, int]:
        """As `at`, of the draws without their repetitions."""
        epoch, offset = divmod(draw, self.num_samples)
        group, first_slot, num_blocks = self._group(offset)
        size = self._group_samples(group, num_blocks)
        shuffled = permute(offset - first_slot * self.block_samples, size, keys(self.seed, epoch, "samples", group))
        slot, inside = divmod(shuffled, self.block_samples)
        return epoch, (self._block_start(epoch, first_slot + slot) + inside) % self.num_samples

    def replacement(self, position: int, attempt: int) -> int:
        """Return the index of the sample that replaces a broken one at `position`; `attempt` counts from 1.

        It comes from the group of the position, so that no other shard has to be fetched for it.
        """
        draw = position // self.repeats
        epoch, offset = divmod(draw, self.num_samples)
        group, first_slot, num_blocks = self._group(offset)
        first, size = first_slot * self.block_samples, self._group_samples(group, num_blocks)
        if size == 1:
            return self._at(draw)[1]
        # A step of 1..size-1 from the position itself: never the broken sample again.
        step = 1 + keys(self.seed, draw, "replacement", attempt)[0] % (size - 1)
        return self._at(epoch * self.num_samples + first + (offset - first + step) % size)[1]

    def group_at(self, position: int) -> Group:
        """Return the shuffle group of a position; the next group starts at first_position + num_samples."""
        epoch, offset = divmod(position // self.repeats, self.num_samples)
        group, first_slot, num_blocks = self._group(offset)
        ranges: list[tuple[int, int]] = []
        for slot in range(first_slot, first_slot + num_blocks + (self._has_rest(group))):
            start = self._block_start(epoch, slot) % self.num_samples
            stop = start + (self.block_samples if slot < self._num_blocks else self._rest)
            ranges.append((start, min(stop, self.num_samples)))
            if stop > self.num_samples:
                ranges.append((0, stop - self.num_samples))
        first_position = epoch * self.num_samples + first_slot * self.block_samples
        size = self._group_samples(group, num_blocks)
        return Group(first_position * self.repeats, size * self.repeats, ranges)

    def following(self, position: int) -> int:
        """Return the first position of the group that comes next."""
        group = self.group_at(position)
        return group.first_position + group.num_samples

    def lane_of(self, position: int) -> int:
        """Return 0: all positions draw from the same groups (see lanes.py)."""
        return 0

    def share(self, batch: int, global_batch: int, rank: int, world_size: int) -> Sequence[int]:
        """Return the positions of a batch that a rank takes: the rank-th of `world_size` equal parts."""
        part = global_batch // world_size
        first = batch * global_batch + rank * part
        return range(first, first + part)

    def _group(self, offset: int) -> tuple[int, int, int]:
        """Return the group, its first slot, and its number of whole blocks, for an offset into the epoch."""
        slot = min(offset // self.block_samples, self._num_blocks - 1)  # the rest block belongs to the last group
        split = self._larger_groups * (self._blocks_per_group + 1)
        if slot < split:
            group = slot // (self._blocks_per_group + 1)
        else:
            group = self._larger_groups + (slot - split) // self._blocks_per_group
        first_slot = group * self._blocks_per_group + min(group, self._larger_groups)
        return group, first_slot, self._blocks_per_group + (group < self._larger_groups)

    def _has_rest(self, group: int) -> bool:
        return self._rest > 0 and group == self._num_groups - 1

    def _group_samples(self, group: int, num_blocks: int) -> int:
        return num_blocks * self.block_samples + (self._rest if self._has_rest(group) else 0)

    def _block_start(self, epoch: int, slot: int) -> int:
        """First sample index (before wrapping round) of the block in a slot; the rest block stays in the last slot.

        Because of the rotation, its content is random nevertheless.
        """
        rotation = keys(self.seed, epoch, "rotation")[0] % self.num_samples
        if slot < self._num_blocks:
            slot = permute(slot, self._num_blocks, keys(self.seed, epoch, "blocks"))
        return slot * self.block_samples + rotation
