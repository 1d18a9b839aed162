"""Collection of records of single samples from all ranks on the main rank, in messages of bounded size.

`Ranks.gather` copies everything to every rank together, so it is only for small objects. Here only the main rank
receives, one message of each rank at a time, and merges by position as messages arrive.
"""

from __future__ import annotations

import heapq
import itertools
import pickle
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

MESSAGE_BYTES = 1 << 20
"""Maximum size of a message. A larger record is split into several."""
_LENGTH = struct.Struct("<q")


class Channel(Protocol):
    """The part of `launch.ranks.Ranks` that is needed here."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]: ...
    def send(self, message: bytes) -> None: ...
    def receive(self, rank: int) -> bytes: ...


def collect(records: Mapping[int, Any], ranks: Channel) -> list[tuple[int, Any]]:
    """Return the records of all ranks with their positions, sorted by position; empty except on the main rank.

    A collective.

    Args:
        records: those of this rank, by position; anything that can be pickled.

    Raises:
        ValueError: if two ranks have a record for the same position.
        LostRanks: if another rank died or does not respond.
    """
    if not any(ranks.gather(len(records))):
        return []
    if ranks.rank != 0:
        for message in messages(records):
            ranks.send(message)
        ranks.send(b"")  # end of stream
        return []
    streams = [received(ranks, rank) for rank in range(1, ranks.world_size)]
    merged = list(heapq.merge(sorted(records.items()), *streams, key=lambda entry: entry[0]))
    for (before, _), (after, _) in itertools.pairwise(merged):
        if before == after:
            raise ValueError(f"two ranks have a record for position {after}")
    return merged


def messages(records: Mapping[int, Any]) -> Iterator[bytes]:
    """Yield records as a stream of bytes, sorted by position, cut into non-empty messages."""
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
    """Yield the records that another rank sends; each message is received on demand."""
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
