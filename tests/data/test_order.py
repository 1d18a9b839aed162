from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinv2_train.data.order import SampleOrder, permute, sample_rng

orders = st.builds(
    SampleOrder,
    st.integers(1, 700),
    st.integers(-5, 2**70),
    shuffle_samples=st.integers(1, 900),
    block_samples=st.none() | st.integers(1, 200),
)


def epoch_of(order: SampleOrder, epoch: int) -> np.ndarray:
    n = order.num_samples
    return np.array([order.at(epoch * n + i)[1] for i in range(n)])


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(orders, st.integers(0, 10**6))
def test_every_epoch_visits_every_sample_once(order: SampleOrder, epoch: int) -> None:
    first = epoch * order.num_samples
    visits = [order.at(first + i) for i in range(order.num_samples)]
    assert {e for e, _ in visits} == {epoch}
    assert sorted(index for _, index in visits) == list(range(order.num_samples))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(orders, st.integers(0, 1000))
def test_groups_tile_the_epoch_and_name_what_they_draw_from(order: SampleOrder, epoch: int) -> None:
    position, end = epoch * order.num_samples, (epoch + 1) * order.num_samples
    seen: list[int] = []
    while position < end:
        group = order.group_at(position)
        assert group.first_position == position
        drawn = {order.at(position + i)[1] for i in range(group.num_samples)}
        named = [index for start, stop in group.ranges for index in range(start, stop)]
        assert drawn == set(named)
        seen += named
        position += group.num_samples
    assert position == end
    assert sorted(seen) == list(range(order.num_samples))


def test_a_billion_samples_cost_no_more_than_a_thousand() -> None:
    order = SampleOrder(10**9 + 7, seed=1)
    start = 3 * order.num_samples + 123_456_789
    visits = [order.at(start + i) for i in range(2000)]
    assert {epoch for epoch, _ in visits} == {3}
    assert len({index for _, index in visits}) == 2000
    group = order.group_at(start)
    assert abs(group.num_samples - 131072) < 8192
    assert all(any(a <= index < b for a, b in group.ranges) for _, index in visits)


def test_the_order_never_changes_between_versions() -> None:
    """A run that resumes with a later version must go on in the same order."""
    order = SampleOrder(1000, seed=3, shuffle_samples=200, block_samples=16)
    assert [order.at(i) for i in (0, 1, 999, 1000, 123456)] == [(0, 490), (0, 689), (0, 783), (1, 279), (123, 754)]
    assert [order.replacement(5, attempt) for attempt in (1, 2)] == [333, 554]
    assert sample_rng(3, 77).integers(0, 10**6, 3).tolist() == [886209, 276268, 712489]


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 5000), st.integers(1, 40))
def test_a_replacement_comes_from_the_same_group(order: SampleOrder, position: int, attempt: int) -> None:
    index = order.replacement(position, attempt)
    group = order.group_at(position)
    assert any(start <= index < stop for start, stop in group.ranges)
    assert index == order.replacement(position, attempt)
    if group.num_samples > 1:
        assert index != order.at(position)[1]


def test_sample_rng_depends_only_on_seed_and_position() -> None:
    draws = {
        (seed, position): tuple(sample_rng(seed, position).random(4)) for seed in (0, 1) for position in (0, 1, 2**40)
    }
    assert len(set(draws.values())) == 6
    assert tuple(sample_rng(1, 2**40).random(4)) == draws[1, 2**40]


def statistics_of(shuffled: np.ndarray, before: np.ndarray) -> dict[str, float]:
    n = len(shuffled)
    return {
        "mean displacement": float(np.abs(shuffled - np.arange(n)).mean()) / n,
        "serial correlation": float(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]),
        "correlation with the epoch before": float(np.corrcoef(np.argsort(shuffled), np.argsort(before))[0, 1]),
        "neighbors kept": float((np.diff(shuffled) == 1).sum()),
        "fixed points": float((shuffled == np.arange(n)).sum()),
        "same place as in the epoch before": float((shuffled == before).sum()),
    }


@pytest.mark.slow
def test_a_shuffle_in_one_group_is_as_good_as_numpys() -> None:
    """Each statistic, averaged over epochs, lies within 4 standard errors of what true random permutations give."""
    n, epochs = 3000, 12
    order = SampleOrder(n, seed=11, shuffle_samples=n)
    ours = [epoch_of(order, epoch) for epoch in range(epochs + 1)]
    rng = np.random.default_rng(0)
    theirs = [rng.permutation(n) for _ in range(301)]
    mine = [statistics_of(b, a) for a, b in itertools.pairwise(ours)]
    reference = [statistics_of(b, a) for a, b in itertools.pairwise(theirs)]
    for name in mine[0]:
        values = np.array([row[name] for row in reference])
        found = np.mean([row[name] for row in mine])
        assert abs(found - values.mean()) < 4 * values.std() / math.sqrt(epochs), name


@pytest.mark.slow
def test_bounded_groups_still_mix_the_whole_set() -> None:
    """With groups of a tenth of the data, sorted classes are spread over the groups and differently in every epoch."""
    n, group = 20_000, 2_000
    order = SampleOrder(n, seed=5, shuffle_samples=group)
    first, second = epoch_of(order, 0), epoch_of(order, 1)
    # 40 classes sorted one after the other: any 500 consecutive positions see more than half of them...
    classes = first // (n // 40)
    windows = [len(set(classes[i : i + 500])) for i in range(0, n - 500, 500)]
    assert np.mean(windows) > 20
    # ...two samples that lie side by side in the shards do not stay together...
    assert (np.abs(np.diff(first)) == 1).mean() < 0.01
    # ...and the place of a sample in one epoch says nothing about its place in the next.
    assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 0.2
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.4


def test_all_permutations_of_a_few_are_equally_likely() -> None:
    rng = np.random.default_rng(0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(4800):
        keys = tuple(int(key) for key in rng.integers(0, 2**63, 8))
        result = tuple(permute(i, 4, keys) for i in range(4))
        counts[result] = counts.get(result, 0) + 1
    assert len(counts) == 24
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 60  # 23 degrees of freedom: above this once in 30 000 true shuffles


@pytest.mark.parametrize(
    "arguments", [{"num_samples": 0}, {"num_samples": 5, "shuffle_samples": 0}, {"num_samples": 5, "repeats": 0}]
)
def test_an_order_over_nothing_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        SampleOrder(seed=0, **arguments)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(0, 5000))
def test_repeats_stretch_the_order_and_change_nothing_else(num_samples: int, repeats: int, position: int) -> None:
    once = SampleOrder(num_samples, 3, shuffle_samples=40)
    repeated = SampleOrder(num_samples, 3, shuffle_samples=40, repeats=repeats)
    assert repeated.at(position) == once.at(position // repeats)
    assert repeated.replacement(position, 2) == once.replacement(position // repeats, 2)
    ours, theirs = repeated.group_at(position), once.group_at(position // repeats)
    assert ours.ranges == theirs.ranges
    assert (ours.first_position, ours.num_samples) == (theirs.first_position * repeats, theirs.num_samples * repeats)
    assert ours.first_position <= position < ours.first_position + ours.num_samples
