"""Matching against a plain reference, and sampling that depends on the seed alone."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.models.detection import matching
from swinv2_train.models.detection.matching import BACKGROUND, NEITHER, match, without_crowd
from swinv2_train.models.detection.sampling import branch_noise, candidate_noise, sample
from swinv2_train.models.drop_path import drop_path_noise
from tests.models.detection.made import LargestTensor, plain_overlap, random_boxes

GENERATOR = torch.Generator().manual_seed(4)


def described(
    candidates: list[list[float]], truths: list[list[float]], high: float, low: float, best_from: float | None
) -> list[int]:
    """The rules, one pair after another."""
    table = [[plain_overlap(truth, candidate) for candidate in candidates] for truth in truths]
    result = []
    for number in range(len(candidates)):
        column = [row[number] for row in table]
        most = max(column, default=0.0)
        result.append(column.index(most) if column and most >= high else BACKGROUND if most < low else NEITHER)
    for index, row in enumerate(table if best_from is not None else []):
        for number, value in enumerate(row):
            if value == max(row) and max(row) >= best_from:
                result[number] = index
    return result


@pytest.mark.parametrize(("high", "low", "best_from"), [(0.7, 0.3, 0.3), (0.5, 0.5, None), (0.6, 0.6, None)])
@pytest.mark.parametrize("truths", [0, 1, 7])
def test_candidates_belong_to_the_object_of_the_rules(
    monkeypatch: pytest.MonkeyPatch, high: float, low: float, best_from: float | None, truths: int
) -> None:
    goals = random_boxes(truths, GENERATOR)
    near = goals.repeat(3, 1) + 3 * torch.randn(3 * truths, 4, generator=GENERATOR)
    # Whole numbers make equal overlaps; and some candidates are twice there.
    candidates = torch.cat([random_boxes(40, GENERATOR), near, near[:5]]).round()
    candidates[:, 2:] = torch.maximum(candidates[:, 2:], candidates[:, :2] + 1)
    goals, candidates = goals.round().double(), candidates.double()
    expected = described(candidates.tolist(), goals.tolist(), high, low, best_from)
    assert match(candidates, goals, high, low, best_from).tolist() == expected
    monkeypatch.setattr(matching, "_PAIRS", 2 * len(candidates))  # two objects at a time
    assert match(candidates, goals, high, low, best_from).tolist() == expected
    assert match(candidates[:0], goals, high, low, best_from).tolist() == []


@pytest.mark.parametrize("best_from", [0.3, None])
def test_memory_does_not_depend_on_the_number_of_objects(
    monkeypatch: pytest.MonkeyPatch, best_from: float | None
) -> None:
    """The largest tensor, by the operations that run: pairs of a part of the objects, of 8 bytes at most each."""
    monkeypatch.setattr(matching, "_PAIRS", 3000)
    candidates, sizes = random_boxes(300, GENERATOR), []
    for count in (10, 400):
        objects = random_boxes(count, GENERATOR)
        with LargestTensor() as largest:
            matched = match(candidates, objects, 0.7, 0.3, best_from)
            without_crowd(matched, candidates, objects)
        sizes.append(largest.bytes)
    assert sizes[0] == sizes[1] <= 3000 * 8
    assert sizes[0] > 300 * 4 * 4, "larger than the boxes themselves"


def test_of_equal_objects_a_candidate_gets_the_first_and_the_last_if_it_is_the_best() -> None:
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    candidates = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0, 0, 10, 8]])
    assert match(candidates, truth, 0.7, 0.3).tolist() == [0, 0]
    assert match(candidates, truth, 0.7, 0.3, 0.3).tolist() == [1, 0]


def test_objects_without_area_match_nothing() -> None:
    truth = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    assert match(torch.cat([truth, truth + 1]), truth, 0.7, 0.3, 0.3).tolist() == [BACKGROUND, BACKGROUND]


def test_background_in_a_crowd_can_be_left_out() -> None:
    candidates = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [6, 0, 16, 10], [0, 0, 4, 4]])
    crowd = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    matched = torch.tensor([BACKGROUND, BACKGROUND, BACKGROUND, 3])
    assert without_crowd(matched, candidates, crowd).tolist() == [NEITHER, NEITHER, BACKGROUND, 3]
    assert torch.equal(without_crowd(matched, candidates, crowd[:0]), matched)


def test_samples_are_those_with_the_smallest_numbers() -> None:
    matched = torch.tensor([0, BACKGROUND, 2, NEITHER, 1, BACKGROUND, BACKGROUND, 0])
    noise = torch.tensor([0.9, 0.5, 0.1, 0.0, 0.2, 0.4, 0.5, 0.3])
    positives, negatives = sample(matched, noise, 4, 0.5)
    assert (positives.tolist(), negatives.tolist()) == ([2, 4], [1, 5])
    positives, negatives = sample(matched, noise, 8, 0.25)
    assert (positives.tolist(), negatives.tolist()) == ([2, 4], [1, 5, 6])
    positives, negatives = sample(matched[:0], noise[:0], 8, 0.25)
    assert len(positives) == len(negatives) == 0


def test_numbers_depend_on_seed_draw_and_candidate_alone() -> None:
    seeds = torch.tensor([3, -9, 1 << 45])
    first = candidate_noise(seeds[0], 0, 5000)
    assert torch.equal(first[:100], candidate_noise(seeds[0], 0, 100))
    others = [candidate_noise(seeds[1], 0, 5000), candidate_noise(seeds[0], 1, 5000), drop_path_noise(seeds[:1], 2500)]
    for other in others:
        assert (first == other.flatten()).float().mean() < 0.001
        assert abs(torch.corrcoef(torch.stack([first, other.flatten()]))[0, 1]) < 0.05
    assert abs(first.mean().item() - 0.5) < 0.02
    assert torch.equal(branch_noise(seeds)[1:], branch_noise(seeds[1:]))
