"""Order of samples in lanes, so that every machine reads only its own part of the data set.

The endless stream of draws is dealt to L lanes, two draws at a time: draw d belongs to lane (d // 2) mod L. A rank
takes whole lanes, as far as the numbers allow, so what a lane draws from is fetched by one machine. An epoch is built
as follows:

1. The indices 0..N-1 (all shards one after the other) are cut into blocks, at the same places in every epoch.
2. The blocks are permuted over the entire data set and laid in a row.
3. Each lane takes the next stretch of the row, as many samples as it has draws in the epoch.
4. The stretch is cut into groups, and the samples of a group are permuted among themselves.

Two draws in a row stay in one lane because mixup and cutmix blend neighboring samples (see mix.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from swinv2_train.config.order import DRAWS_PER_DEAL
from swinv2_train.data.order import Group, keys, permute

_MANY = 64
"""Minimum size of a group that a broken sample is replaced from."""
_BLOCKS_PER_LANE = 4
"""Minimum number of blocks in a lane's part of an epoch; a small data set has smaller blocks."""


class LaneOrder:
    """Endless shuffled order over `num_samples` samples; every epoch visits each of them exactly once.

    As in `SampleOrder`, nothing is stored per sample, and the order depends on no number of ranks or workers.

    Args:
        lanes: number of lanes.
        shuffle_samples: size of the groups of all lanes together.
        block_samples: samples in a row that are read together. Smaller blocks mix better: with b blocks per class in a
            group, the classes of two batches in a row are correlated as 1 / (1 + b / samples of a class in a batch).
        repeats: positions in a row that contain the same sample (repeated augmentation).
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        *,
        lanes: int,
        shuffle_samples: int = 131072,
        block_samples: int = 16,
        repeats: int = 1,
    ) -> None:
        values = {
            "num_samples": num_samples,
            "lanes": lanes,
            "shuffle_samples": shuffle_samples,
            "block_samples": block_samples,
            "repeats": repeats,
        }
        for name, value in values.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.num_samples, self.seed, self.lanes, self.repeats = num_samples, seed, lanes, repeats
        self.block_samples = max(1, min(block_samples, num_samples // (_BLOCKS_PER_LANE * lanes)))
        self._cycle = DRAWS_PER_DEAL * lanes
        self._num_blocks, self._rest = divmod(num_samples, self.block_samples)
        self._window = max(1, shuffle_samples // lanes)

    def at(self, position: int) -> tuple[int, int]:
        """Epoch and sample index at a position (0, 1, 2, ... without end)."""
        epoch, lane, place = self._place(position)
        first, size = self._lane(epoch, lane)
        group, start, stop = self._group(place, size)
        keyed = keys(self.seed, epoch, "lane", lane, group)
        return epoch, self._sample(epoch, first + start + permute(place - start, stop - start, keyed))

    def replacement(self, position: int, attempt: int) -> int:
        """Return the index of the sample that replaces a broken one at `position`; `attempt` counts from 1.

        It comes from the group of the position, so that no other machine's samples have to be fetched for it; from the
        entire data set if the group is too small to have enough others.
        """
        epoch, lane, place = self._place(position)
        _, size = self._lane(epoch, lane)
        _, start, stop = self._group(place, size)
        number = keys(self.seed, position // self.repeats, "replacement", attempt)[0]
        # In both cases a step of at least 1 from the position itself: never the broken sample again.
        if stop - start >= min(_MANY, self.num_samples):
            place = start + (place - start + 1 + number % max(stop - start - 1, 1)) % (stop - start)
            return self.at(self._position(epoch, lane, place))[1]
        return (self.at(position)[1] + 1 + number % max(self.num_samples - 1, 1)) % self.num_samples

    def following(self, position: int) -> int:
        """Return the first position of the group that comes next in the lane of a position."""
        epoch, lane, place = self._place(position)
        _, size = self._lane(epoch, lane)
        _, _, stop = self._group(place, size)
        return self._position(epoch, lane, stop) if stop < size else self._position(*self._next(epoch, lane), 0)

    def group_at(self, position: int) -> Group:
        """Return the shuffle group of a position."""
        epoch, lane, place = self._place(position)
        first, size = self._lane(epoch, lane)
        _, start, stop = self._group(place, size)
        return Group(
            self._position(epoch, lane, start),
            (stop - start) * self.repeats,
            self._ranges(epoch, first + start, first + stop),
        )

    def lane_of(self, position: int) -> int:
        """Return the lane of a position."""
        return position // (self.repeats * DRAWS_PER_DEAL) % self.lanes

    def share(self, batch: int, global_batch: int, rank: int, world_size: int) -> Sequence[int]:
        """Return the positions of a batch that a rank takes, lane by lane.

        The batch is sorted by lanes and cut into `world_size` equal parts, so a lane is shared by two ranks only where
        the cut falls inside it.

        Raises:
            ValueError: if the lanes do not divide the batch.
        """
        unit = self.repeats * DRAWS_PER_DEAL
        if self.lanes > 1 and global_batch % (unit * self.lanes):
            raise ValueError(f"lanes={self.lanes}: must divide the global batch of {global_batch} by units of {unit}")
        part = global_batch // world_size
        places = range(rank * part, (rank + 1) * part)
        first = batch * global_batch
        if self.lanes == 1:
            return range(first + places.start, first + places.stop)
        per_lane = global_batch // self.lanes
        found = []
        for place in places:
            lane, inside = divmod(place, per_lane)
            row, offset = divmod(inside, unit)
            found.append(first + (row * self.lanes + lane) * unit + offset)
        return found

    def _place(self, position: int) -> tuple[int, int, int]:
        """Return the epoch, the lane, and the place of a position among the draws of its lane in the epoch."""
        draw = position // self.repeats
        epoch = draw // self.num_samples
        lane = draw // DRAWS_PER_DEAL % self.lanes
        return epoch, lane, self._draws(draw, lane) - self._draws(epoch * self.num_samples, lane)

    def _position(self, epoch: int, lane: int, place: int) -> int:
        """Return the first position of a place; the inverse of `_place`."""
        deal, inside = divmod(self._draws(epoch * self.num_samples, lane) + place, DRAWS_PER_DEAL)
        return (deal * self._cycle + lane * DRAWS_PER_DEAL + inside) * self.repeats

    def _draws(self, draw: int, lane: int) -> int:
        """Return how many of the draws before `draw` belong to a lane."""
        cycles, rest = divmod(draw, self._cycle)
        return cycles * DRAWS_PER_DEAL + min(max(rest - lane * DRAWS_PER_DEAL, 0), DRAWS_PER_DEAL)

    def _draws_of_lanes_before(self, draw: int, lane: int) -> int:
        """Return how many of the draws before `draw` belong to the lanes 0..lane-1."""
        cycles, rest = divmod(draw, self._cycle)
        return cycles * DRAWS_PER_DEAL * lane + min(rest, DRAWS_PER_DEAL * lane)

    def _lane(self, epoch: int, lane: int) -> tuple[int, int]:
        """Return where a lane's stretch of the row starts, and its length."""
        start, stop = epoch * self.num_samples, (epoch + 1) * self.num_samples
        first = self._draws_of_lanes_before(stop, lane) - self._draws_of_lanes_before(start, lane)
        return first, self._draws(stop, lane) - self._draws(start, lane)

    def _next(self, epoch: int, lane: int) -> tuple[int, int]:
        """Return the next epoch in which a lane has draws, and the lane."""
        epoch += 1
        while self._lane(epoch, lane)[1] == 0:  # a lane may have none in an epoch of fewer samples than lanes
            epoch += 1
        return epoch, lane

    def _group(self, place: int, size: int) -> tuple[int, int, int]:
        """Return the group of a place in a stretch of `size` samples, and the half-open range of its places."""
        count = max(1, round(size / self._window))
        group = ((place + 1) * count - 1) // size
        return group, group * size // count, (group + 1) * size // count

    def _rest_slot(self, epoch: int) -> int:
        """Return the slot in front of which the smaller last block lies in the row of an epoch."""
        return keys(self.seed, epoch, "rest")[0] % (self._num_blocks + 1)

    def _block_at(self, epoch: int, place: int) -> tuple[int, int, int]:
        """Return the block at a place in the row of an epoch, the place in the block, and the size of the block."""
        split = self._rest_slot(epoch) * self.block_samples
        if split <= place < split + self._rest:
            return self._num_blocks, place - split, self._rest
        slot, inside = divmod(place if place < split else place - self._rest, self.block_samples)
        return permute(slot, self._num_blocks, keys(self.seed, epoch, "blocks")), inside, self.block_samples

    def _sample(self, epoch: int, place: int) -> int:
        block, inside, _ = self._block_at(epoch, place)
        return block * self.block_samples + inside

    def _ranges(self, epoch: int, place: int, stop: int) -> list[tuple[int, int]]:
        """Return the sample indices of places in the row of an epoch, as half-open ranges."""
        ranges = []
        while place < stop:
            block, inside, size = self._block_at(epoch, place)
            count = min(size - inside, stop - place)
            first = block * self.block_samples + inside
            ranges.append((first, first + count))
            place += count
        return ranges


def lane_reads(lanes: int, hosts: int) -> float:
    """Return how often all hosts together read the data set in an epoch: each lane once per host that shares it."""
    shares = sum(-(-(host + 1) * lanes // hosts) - host * lanes // hosts for host in range(hosts))
    return shares / lanes
