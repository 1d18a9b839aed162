from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinv2_train.config.order import DRAWS_PER_DEAL
from swinv2_train.data.lanes import LaneOrder, lane_reads
from swinv2_train.data.mix import partner_of
from swinv2_train.data.order import Order, SampleOrder

orders = st.builds(
    LaneOrder,
    st.integers(1, 300),
    st.integers(-5, 2**70),
    lanes=st.integers(1, 70),
    shuffle_samples=st.integers(1, 500),
    block_samples=st.integers(1, 40),
    repeats=st.integers(1, 3),
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(orders, st.integers(0, 10**6))
def test_every_epoch_visits_every_sample_once(order: LaneOrder, epoch: int) -> None:
    first = epoch * order.num_samples * order.repeats
    visits = [order.at(first + i) for i in range(order.num_samples * order.repeats)]
    assert {e for e, _ in visits} == {epoch}
    assert sorted(index for _, index in visits[:: order.repeats]) == list(range(order.num_samples))
    assert [visit for visit in visits[:: order.repeats] for _ in range(order.repeats)] == visits


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 1000))
def test_groups_follow_each_other_in_a_lane_and_name_what_they_draw_from(order: LaneOrder, epoch: int) -> None:
    drawn: dict[tuple[int, int], set[int]] = {}
    groups = {}
    size = order.num_samples * order.repeats
    for position in range(epoch * size, (epoch + 1) * size):
        group = order.group_at(position)
        key = order.lane_of(position), group.first_position
        drawn.setdefault(key, set()).add(order.at(position)[1])
        groups[key] = group
        assert group.first_position <= position < order.following(position)
    for (lane, first), group in groups.items():
        named = [index for start, stop in group.ranges for index in range(start, stop)]
        assert len(named) == len(set(named)) == group.num_samples // order.repeats
        assert drawn[lane, first] == set(named)
        following = order.following(first)
        assert order.group_at(following).first_position == following
        assert order.lane_of(following) == lane
    seen = [index for group in groups.values() for start, stop in group.ranges for index in range(start, stop)]
    assert sorted(seen) == list(range(order.num_samples))


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 5000), st.integers(1, 40))
def test_a_replacement_comes_from_a_large_group_itself(order: LaneOrder, position: int, attempt: int) -> None:
    index = order.replacement(position, attempt)
    group = order.group_at(position)
    large = group.num_samples >= 64 * order.repeats or group.num_samples == order.num_samples * order.repeats
    assert any(start <= index < stop for start, stop in group.ranges) or not large
    assert index == order.replacement(position, attempt)
    assert index != order.at(position)[1] or order.num_samples == 1


def test_a_small_group_is_not_the_only_source_of_replacements() -> None:
    order = LaneOrder(1000, 0, lanes=64, shuffle_samples=64)
    assert order.group_at(77).num_samples == 1
    assert len({order.replacement(77, attempt) for attempt in range(1, 33)}) > 20


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("lanes", [1, 4, 6])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8, 12])
def test_ranks_share_out_the_batch_by_lanes(world_size: int, lanes: int, repeats: int) -> None:
    order = LaneOrder(1000, 3, lanes=lanes, repeats=repeats)
    size = 24 * DRAWS_PER_DEAL * repeats
    shares = [list(order.share(5, size, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(itertools.chain(*shares)) == list(range(5 * size, 6 * size))
    for share in shares:
        taken = [order.lane_of(position) for position in share]
        assert taken == sorted(taken)
        assert len(set(taken)) <= -(-lanes // world_size) + (lanes % world_size > 0)
        if len(share) % (DRAWS_PER_DEAL * repeats) == 0:  # mixing reads no sample of another rank
            assert {partner_of(position, repeats) for position in share} == set(share)


def test_lanes_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes=5: must divide the global batch of 24 by units of 2"):
        LaneOrder(100, 0, lanes=5).share(0, 24, 0, 1)
    for name in ("num_samples", "lanes", "shuffle_samples", "block_samples", "repeats"):
        with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
            LaneOrder(**{"num_samples": 9, "seed": 0, "lanes": 2, name: 0})


def test_a_billion_samples_cost_no_more_than_a_thousand() -> None:
    order = LaneOrder(10**9 + 7, seed=1, lanes=64)
    start = 3 * order.num_samples + 123_456_789
    visits = [order.at(start + i) for i in range(2000)]
    assert {epoch for epoch, _ in visits} == {3}
    assert len({index for _, index in visits}) == 2000
    group = order.group_at(start)
    assert abs(group.num_samples * 64 - 131072) < 8192
    assert all(stop - start <= 16 for start, stop in group.ranges)


def test_the_order_never_changes_between_versions() -> None:
    """A run that resumes with a later version must go on in the same order."""
    order = LaneOrder(1000, seed=3, lanes=4, shuffle_samples=200, block_samples=16)
    assert [order.at(i) for i in (0, 1, 999, 1000, 123456)] == [(0, 695), (0, 253), (0, 686), (1, 612), (123, 871)]
    assert [order.replacement(5, attempt) for attempt in (1, 2)] == [800, 175]
    assert list(order.share(2, 16, 1, 2)) == [36, 37, 44, 45, 38, 39, 46, 47]


def quality(order: Order, batch: int, num_batches: int, classes: int = 1000) -> tuple[float, float]:
    """Distinct classes in a batch of a set that is sorted by classes, and the correlation of two batches in a row."""
    indices = np.array([order.at(position)[1] for position in range(batch * num_batches)]).reshape(-1, batch)
    labels = indices * classes // order.num_samples
    shares = np.array([np.bincount(row, minlength=classes) for row in labels]) / batch - 1 / classes
    before, after = shares[:-1], shares[1:]
    norms = np.sqrt((before**2).sum(1) * (after**2).sum(1))
    return float(np.mean([len(set(row)) for row in labels])), float(((before * after).sum(1) / norms).mean())


@pytest.mark.slow
def test_the_default_order_mixes_a_set_that_is_sorted_by_classes() -> None:
    """A uniform order has 642 classes in a batch of 1024; that of earlier versions has 41."""
    distinct, correlation = quality(LaneOrder(14_000_000, 0, lanes=64), 1024, 24)
    assert distinct > 600
    assert correlation < 0.2
    distinct, correlation = quality(SampleOrder(14_000_000, 0), 1024, 24)
    assert distinct < 60
    assert correlation > 0.9


def test_reads_of_hosts_that_share_lanes() -> None:
    assert [lane_reads(64, hosts) for hosts in (1, 8, 24, 48, 64, 128)] == [1.0, 1.0, 1.25, 1.5, 1.0, 2.0]
    assert lane_reads(1, 8) == 8.0
