"""NMS per class and soft-NMS against plain references, with equal scores."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.models.detection import suppression
from swinv2_train.models.detection.suppression import decreasing, soften, suppress
from tests.models.detection.made import plain_overlap, random_boxes

GENERATOR = torch.Generator().manual_seed(5)


def crowded(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes in two classes that overlap often, and decreasing scores of which many are equal."""
    boxes = random_boxes(count, GENERATOR, 12.0)
    scores = (1 + (torch.rand(count, generator=GENERATOR) * 7).floor()) / 8
    return boxes, scores.sort(descending=True).values, torch.randint(0, 2, (count,), generator=GENERATOR)


@pytest.mark.parametrize("together", [10_000, 0])
def test_boxes_are_suppressed_by_better_ones_of_their_class(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(suppression, "_TOGETHER", together)
    boxes, _, groups = crowded(60)
    kept: list[int] = []
    for number, box in enumerate(boxes.tolist()):
        rivals = [boxes[other].tolist() for other in kept if groups[other] == groups[number]]
        if all(plain_overlap(box, rival) <= 0.5 for rival in rivals):
            kept.append(number)
    assert len(kept) < 45
    assert suppress(boxes, groups, 0.5).tolist() == kept
    assert suppress(boxes[:0], groups[:0], 0.5).tolist() == []


def test_of_equal_boxes_the_first_remains() -> None:
    box = torch.tensor([[1.0, 2.0, 30.0, 40.0]]).repeat(5, 1)
    assert suppress(box, torch.tensor([0, 1, 0, 1, 2]), 0.5).tolist() == [0, 1, 4]
    assert decreasing(torch.tensor([0.5, 0.9, 0.5, 0.9])).tolist() == [1, 3, 0, 2]


def test_soft_suppression_lowers_scores_by_overlap() -> None:
    boxes, scores, groups = crowded(40)
    waiting = dict(enumerate(scores.tolist()))
    expected = []
    while waiting:
        best = max(waiting, key=lambda number: (waiting[number], -number))
        score = waiting.pop(best)
        expected.append((best, score))
        for number in waiting:
            overlap = plain_overlap(boxes[best].tolist(), boxes[number].tolist())
            if groups[number] == groups[best] and overlap > 0.3:
                waiting[number] *= 1 - overlap
    expected = [(number, score) for number, score in expected if score >= 1e-3]
    order, found = soften(boxes, scores, groups, 0.3)
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert dict(zip(order.tolist(), found.tolist(), strict=True)) == pytest.approx(dict(expected), rel=1e-5)
    assert sum(found) < 0.8 * sum(scores)


def test_soft_suppression_removes_copies() -> None:
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]]).repeat(3, 1)
    order, scores = soften(boxes, torch.tensor([0.9, 0.9, 0.8]), torch.tensor([0, 0, 1]), 0.5)
    assert order.tolist() == [0, 2]
    assert scores.tolist() == pytest.approx([0.9, 0.8])
