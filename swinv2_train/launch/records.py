"""Bring records of single samples from all ranks to the main rank, in messages of a bounded size.

`Ranks.gather` copies everything to every rank at once, which is for small objects. Here only the main rank receives,
one message of each rank at a time, and merges by position as the messages come.
"""

from __future__ import annotations

import heapq
import itertools
import pickle
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

MESSAGE_BYTES = 1 << 20
"""Largest message. A record may be larger; it comes in several."""
_LENGTH = struct.Struct("<q")


class Channel(Protocol):
    """What is needed of `launch.ranks.Ranks`."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]: ...
    def send(self, message: bytes) -> None: ...
    def receive(self, rank: int) -> bytes: ...


def collect(records: Mapping[int, Any], ranks: Channel) -> list[tuple[int, Any]]:
    """Return the records of all ranks with their positions, in the order of positions; empty on all but the main rank.

    All ranks call it.

    Args:
        records: of this rank, by position; anything that can be pickled.

    Raises:
        ValueError: if two ranks have a record for the same position.
        LostRanks: if another rank died or does not answer.
    """
    if not any(ranks.gather(len(records))):
        return []
    if ranks.rank != 0:
        for message in messages(records):
            ranks.send(message)
        ranks.send(b"")  # the end
        return []
    streams = [received(ranks, rank) for rank in range(1, ranks.world_size)]
    merged = list(heapq.merge(sorted(records.items()), *streams, key=lambda entry: entry[0]))
    for (before, _), (after, _) in itertools.pairwise(merged):
        if before == after:
            raise ValueError(f"two ranks have a record for position {after}")
    return merged


def messages(records: Mapping[int, Any]) -> Iterator[bytes]:
    """Records as a stream of bytes, in the order of positions, cut into messages that are not empty."""
    pending = bytearray()
    for entry in sorted(records.items(), key=lambda entry: entry[0]):
        content = pickle.dumps(entry, protocol=pickle.HIGHEST_PROTOCOL)
        pending += _LENGTH.pack(len(content)) + content
        whole = len(pending) // MESSAGE_BYTES * MESSAGE_BYTES
        for start in range(0, whole, MESSAGE_BYTES):
            yield bytes(pending[start : start + MESSAGE_BYTES])
        del pending[:whole]
    if pending:
        yield bytes(pending)


def received(ranks: Channel, rank: int) -> Iterator[tuple[int, Any]]:
    """The records that another rank sends; the next message is asked for when it is needed."""
    pending = bytearray()
    while message := ranks.receive(rank):
        pending += message
        start = 0
        while start + _LENGTH.size <= len(pending):
            (length,) = _LENGTH.unpack_from(pending, start)
            end = start + _LENGTH.size + length
            if end > len(pending):
                break
            yield pickle.loads(memoryview(pending)[start + _LENGTH.size : end])
            start = end
        del pending[:start]
