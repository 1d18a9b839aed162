"""Detections of several views: softened or averaged, in the pixels of the original image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.data.object_masks import run_lengths
from swinv2_train.models.detection.structures import Detections
from swinv2_train.tasks.detection.inference import Inference
from swinv2_train.tasks.detection.inference import detections as find
from swinv2_train.tasks.detection.merging import as_found, averaged, in_original, softened


def detections(*rows: tuple[list[float], float, int], masks: float | None = None) -> Detections:
    """Box, score, and class of each; `masks` is the probability of all cells."""
    return Detections(
        torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([kind for _, _, kind in rows], dtype=torch.int64),
        None if masks is None else torch.full((len(rows), 28, 28), masks),
    )


def test_views_return_to_the_original() -> None:
    view = detections(([10.0, 20.0, 30.0, 60.0], 0.9, 1), masks=0.0)
    assert view.masks is not None
    view.masks[0, :, :14] = 1.0  # the left half
    back = in_original(view, scale=(2.0, 4.0), corner=(100.0, 200.0), mirrored=80.0)
    assert back.boxes.tolist() == [[200 + 50 / 4, 100 + 10, 200 + 70 / 4, 100 + 30]]
    assert back.masks is not None
    assert back.masks[0, :, 14:].min() == 1.0
    assert back.masks[0, :, :14].max() == 0.0
    assert in_original(view).boxes.tolist() == view.boxes.tolist()


@pytest.mark.parametrize("soft_nms", [False, True])
def test_scores_are_compared_with_the_threshold_after_merging(soft_nms: bool) -> None:
    """The first object is faint in one of two views, the second in both, the third is missing in one."""
    boxes = [[0.0, 0.0, 20.0, 20.0], [40.0, 0.0, 60.0, 20.0], [80.0, 0.0, 100.0, 20.0]]
    plain = detections(*((box, score, 0) for box, score in zip(boxes, (0.3, 0.08, 0.15), strict=True)))
    mirrored = in_original(detections((boxes[0], 0.06, 0), (boxes[1], 0.07, 0)), mirrored=100.0)
    seen = iter([[plain], [mirrored]])
    task = DetectionConfig(score_threshold=0.1, test_flip=True, soft_nms=soft_nms)
    images = torch.zeros(3, 20, 100)
    found = find(lambda *_: next(seen), [images], (20, 100), Inference.of(task))
    expected = [(boxes[0], 0.3), (boxes[2], 0.15)] if soft_nms else [(boxes[0], 0.18)]
    assert found.boxes.tolist() == [box for box, _ in expected]
    assert found.scores.tolist() == pytest.approx([score for _, score in expected])
    assert (task.view_threshold, DetectionConfig(test_scales=[1.0, 2.0]).view_threshold) == (0.001, 0.001)
    assert (DetectionConfig().view_threshold, DetectionConfig(score_threshold=0.0, test_flip=True).view_threshold) == (
        0.05, 0.0,
    )  # fmt: skip


def test_views_are_softened_once_and_even_if_there_is_one() -> None:
    """Two detections of an object overlap by a half, and by nothing else: its lower score counts half, not a quarter.
    Only the figure of training samples has one of several views. The threshold is the lowest score."""
    rows = [([0.0, 0.0, 20.0, 20.0], 0.9, 0), ([0.0, 0.0, 20.0, 10.0], 0.8, 0)]
    task = DetectionConfig(score_threshold=0.4, nms=0.3, test_scales=[1.0, 2.0], soft_nms=True)
    images = torch.zeros(3, 20, 100)
    (first, second) = find(lambda *_: [detections(*rows)], [images], (20, 100), Inference.of(task)).scores.tolist()
    assert (first, second) == pytest.approx((0.9, 0.4))
    task.test_scales = [1.0]  # softened by the model
    alone = find(lambda *_: [detections(*rows)], [images], (20, 100), Inference.of(task))
    assert alone.scores.tolist() == pytest.approx([0.9, 0.8])


def test_detections_become_a_record() -> None:
    """From a canvas at half the size, whose lower part is padding: a box may exceed the image by rounding."""
    found = detections(([1.0, 2.0, 20.0, 15.25], 0.5, 3), masks=1.0)
    record = as_found(in_original(found, scale=(0.5, 0.5)), (30, 60))
    assert record.boxes.tolist() == [[2.0, 4.0, 40.0, 30.0]]
    assert (record.boxes.dtype, record.scores.dtype, record.classes.tolist()) == (np.float32, np.float32, [3])
    assert record.masks is not None
    assert record.masks[0] is not None
    assert record.masks[0]["size"] == [30, 60]
    assert run_lengths(record.masks[0]["counts"])[1::2].sum() == pytest.approx(38 * 26, rel=0.01)
    assert as_found(detections(), (30, 60)).masks is None


def test_soft_suppression_over_views_is_within_a_class() -> None:
    first = detections(([0.0, 0.0, 10.0, 10.0], 0.6, 0), ([50.0, 0.0, 60.0, 10.0], 0.5, 0), masks=0.25)
    second = detections(([0.0, 0.0, 10.0, 9.0], 0.8, 0), ([0.0, 0.0, 10.0, 10.0], 0.7, 1), masks=0.75)
    found = softened([first, second], 0.5)
    assert found.scores.tolist() == pytest.approx([0.8, 0.7, 0.5, 0.06])
    assert found.classes.tolist() == [0, 1, 0, 0]
    assert found.masks is not None
    assert found.masks[:, 0, 0].tolist() == [0.75, 0.75, 0.25, 0.25]
    assert softened([first, second], 0.5, most=2).scores.tolist() == pytest.approx([0.8, 0.7])
    assert len(softened([first.__class__(*(value[:0] for value in vars(first).values()))], 0.5).scores) == 0


def test_the_mean_of_views_is_weighted_by_their_scores() -> None:
    first = detections(([0.0, 0.0, 10.0, 10.0], 0.9, 0), ([0.0, 0.0, 10.0, 10.0], 0.4, 1), masks=0.2)
    second = detections(([0.0, 0.0, 10.0, 14.0], 0.3, 0), ([40.0, 0.0, 50.0, 10.0], 0.6, 1), masks=1.0)
    found = averaged([first, second], 0.5)
    assert found.scores.tolist() == pytest.approx([0.6, 0.3, 0.2])
    assert found.classes.tolist() == [0, 1, 1]
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.0, 0.0, 10.0, 11.0]))
    assert found.boxes[1].tolist() == [40.0, 0.0, 50.0, 10.0]
    assert found.masks is not None
    assert float(found.masks[0, 14, 14]) == pytest.approx(0.75 * 0.2 + 0.25 * 1.0)


def test_a_view_is_at_most_once_in_a_group() -> None:
    twins = detections(([0.0, 0.0, 10.0, 10.0], 0.9, 0), ([0.0, 1.0, 10.0, 11.0], 0.8, 0))
    assert averaged([twins, twins], 0.5).scores.tolist() == pytest.approx([0.9, 0.8])
    alone = averaged([twins], 0.5, most=1)
    assert alone.scores.tolist() == pytest.approx([0.9])
    assert alone.masks is None
    none = averaged([detections(), detections()], 0.5)
    assert none.boxes.shape == (0, 4)
