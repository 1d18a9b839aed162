"""Sums over the ranks: exact, the same on every rank, in a number of messages that grows with the logarithm."""

from __future__ import annotations

import math

import pytest
import torch

from swinv2_train.launch.doubling import turns
from tests.launch.wire import added_up


@pytest.mark.parametrize("world_size", [*range(1, 18), 31, 33])
def test_whole_numbers_add_up_exactly_on_every_rank(world_size: int) -> None:
    parts = [torch.tensor([rank**3, 2.0**40 + rank, rank % 2], dtype=torch.float64) for rank in range(world_size)]
    sums, _ = added_up(parts)
    expected = torch.stack(parts).sum(dim=0)
    assert all(torch.equal(total, expected) for total in sums)


@pytest.mark.parametrize("world_size", [2, 3, 5, 8, 11, 64])
def test_every_rank_has_the_same_bits_each_time(world_size: int) -> None:
    """Fractions of very different sizes, whose sum depends on the order."""
    generator = torch.Generator().manual_seed(world_size)
    exponents = torch.randint(-40, 40, (world_size, 2), generator=generator).double()
    parts = list(torch.randn(world_size, 2, generator=generator, dtype=torch.float64) * 2**exponents)
    first, _ = added_up(parts)
    assert all(torch.equal(total, first[0]) for total in first)
    torch.testing.assert_close(first[0], torch.stack(parts).sum(dim=0), rtol=1e-12, atol=0.0)
    again, _ = added_up(parts)
    assert torch.equal(again[0], first[0])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 8, 64, 100, 500, 512])
def test_messages_and_waits_grow_with_the_logarithm(world_size: int) -> None:
    _, wires = added_up([torch.ones(5, dtype=torch.float64)] * world_size)
    most = math.ceil(math.log2(world_size))
    assert max(len(wire.sizes) for wire in wires) == most
    assert all(size == 40 for wire in wires for size in wire.sizes)
    assert max(wire.chain for wire in wires) <= most + 1  # one more to tell ranks beyond the power of two
    assert sum(len(wire.sizes) for wire in wires) <= world_size * most


def test_the_first_turns_stay_on_a_host_of_eight() -> None:
    for rank in range(512):
        near, far = turns(rank, 512)[:3], turns(rank, 512)[3:]
        assert {turn.peer // 8 for turn in near} == {rank // 8}
        assert all(turn.peer // 8 != rank // 8 for turn in far)
