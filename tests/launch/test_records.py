"""Records of single samples come to the main rank in order, each once, in messages of a bounded size."""

from __future__ import annotations

from typing import Any

import pytest

from swinv2_train.launch import records
from tests.engine.threads import on_ranks

LIMIT = 256


@pytest.fixture(autouse=True)
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MESSAGE_BYTES", LIMIT)


def share(rank: int, world_size: int, micro_batch: int, total: int) -> dict[int, Any]:
    """The records of a rank as an evaluation deals the positions; some ranks may have none, some records are large."""
    positions = [p for p in range(total) if p // micro_batch % world_size == rank]
    return {position: {"boxes": [position] * (400 if position % 9 == 4 else position % 5)} for position in positions}


@pytest.mark.parametrize(("world_size", "micro_batch", "total"), [(1, 4, 9), (2, 1, 20), (3, 4, 50), (4, 8, 7)])
def test_records_come_in_order_whatever_the_ranks(world_size: int, micro_batch: int, total: int) -> None:
    sizes: list[int] = []

    def work(ranks: Any) -> list[tuple[int, Any]]:
        send = ranks.send
        ranks.send = lambda message: (sizes.append(len(message)), send(message))
        return records.collect(share(ranks.rank, world_size, micro_batch, total), ranks)

    first, *others = on_ranks(world_size, work)
    assert first == sorted(share(0, 1, 1, total).items())
    assert others == [[]] * (world_size - 1)
    assert max(sizes, default=0) <= LIMIT
    assert world_size == 1 or total < 10 or max(sizes) == LIMIT


def test_without_records_nothing_is_sent() -> None:
    def work(ranks: Any) -> list[tuple[int, Any]]:
        ranks.send = ranks.receive = None
        return records.collect({}, ranks)

    assert on_ranks(2, work) == [[], []]


def test_a_position_that_two_ranks_have_is_a_mistake() -> None:
    def work(ranks: Any) -> str:
        try:
            records.collect({7: ranks.rank}, ranks)
        except ValueError as error:
            return str(error)
        return ""

    assert on_ranks(2, work) == ["two ranks have a record for position 7", ""]
