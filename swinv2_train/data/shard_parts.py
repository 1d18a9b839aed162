"""Parts of remote shards: the samples that are fetched together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from swinv2_train.data.shard_table import ShardTable

PART_SAMPLES = 16
"""Default number of samples in a part: 1 to 2 MB of photographs of 500 x 400 pixels."""
Part = tuple[int, int]
"""(shard, first sample in it)"""


class ShardParts:
    """The samples of a set, cut every `samples` samples and between shards.

    Args:
        table: shards of the set.
    """

    def __init__(self, table: ShardTable) -> None:
        self._table = table
        self._ends = np.cumsum(table.num_samples).tolist()  # a list is faster to search than an array
        self.samples = PART_SAMPLES

    def locate(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample of the set, and its number in the shard."""
        shard = bisect_right(self._ends, index)
        return shard, index - self._before(shard)

    def around(self, shard: int, sample: int) -> tuple[int, int]:
        """Return the samples of a shard that are in a part with one of them, as a half-open range."""
        before, size = self._before(shard), int(self._table.num_samples[shard])
        first = (before + sample) // self.samples * self.samples - before
        return max(first, 0), min(first + self.samples, size)

    def of(self, ranges: Sequence[tuple[int, int]], room: float) -> list[Part]:
        """Return the remote parts that half-open ranges of samples of the set touch, each once, in their order.

        Args:
            room: bytes that they may have together; the list ends where they have more.
        """
        found: dict[Part, None] = {}
        for shard, sample, stop in self._stretches(ranges):
            while sample < stop:
                first, last = self.around(shard, sample)
                if (shard, first) not in found:
                    room -= self._mean_bytes(shard) * (last - first)
                    if room < 0:
                        return list(found)
                    found[shard, first] = None
                sample = last
        return list(found)

    def num_bytes(self, ranges: Sequence[tuple[int, int]]) -> float:
        """Return about how many bytes the remote samples of half-open ranges have."""
        return sum(self._mean_bytes(shard) * (stop - sample) for shard, sample, stop in self._stretches(ranges))

    def _stretches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """Yield the remote stretches (shard, first sample, end) of half-open ranges of samples of the set."""
        for start, stop in ranges:
            while start < stop:
                shard, sample = self.locate(start)
                end = min(sample + stop - start, int(self._table.num_samples[shard]))
                if self._table.is_remote(shard):
                    yield shard, sample, end
                start += end - sample

    def _before(self, shard: int) -> int:
        return self._ends[shard] - int(self._table.num_samples[shard])

    def _mean_bytes(self, shard: int) -> float:
        return float(self._table.sizes[shard] / self._table.num_samples[shard])
