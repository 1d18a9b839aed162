"""Records of images: true objects as they are in a sample, and one order for every number of ranks."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.objects import Objects
from swinv2_train.models.detection import Detections
from swinv2_train.tasks.detection.masks import sampled
from swinv2_train.tasks.detection.merging import as_found
from swinv2_train.tasks.detection.records import Found, in_order
from tests.tasks.detection.synthetic import records

CONTENT: dict[str, Any] = {
    "id": 17,
    "width": 60,
    "height": 40,
    "objects": [
        {"bbox": [10, 5, 20, 15], "category": 2, "iscrowd": 0, "area": 290.5, "id": 4,
         "segmentation": [[10, 5, 30, 5, 30, 20, 10, 20]]},
        {"bbox": [0, 0, 9, 9], "category": 0, "iscrowd": 1, "area": 81.0, "id": 9},
    ],
}  # fmt: skip


def test_true_objects_are_those_of_the_sample() -> None:
    objects = Objects.from_json(CONTENT)
    truth = Found.of(objects, masks=True)
    assert truth.boxes.tolist() == [[10, 5, 30, 20], [0, 0, 9, 9]]
    assert truth.classes.tolist() == [2, 0]
    assert truth.is_crowd.tolist() == [False, True]
    assert truth.areas is not None
    assert truth.areas.tolist() == [290.5, 81.0]
    assert truth.masks is not None
    assert truth.masks[1] is None
    assert truth.masks[0] is not None
    mask = sampled(truth.masks[0], np.arange(40), np.arange(60))
    assert mask[5:20, 10:30].all()
    assert mask.sum() == 300
    assert Found.of(objects, masks=False).masks is None
    other = {**CONTENT["objects"][0], "segmentation": {"size": [3, 3], "counts": "09"}}
    with pytest.raises(BrokenSample, match="3 x 3"):
        Found.of(Objects.from_json({**CONTENT, "objects": [other]}), masks=True)


def test_the_order_is_that_of_the_ids() -> None:
    every = records(12)
    every[3].image_id, every[4].image_id, every[5].image_id = "b", "a", every[0].image_id
    ordered = in_order(every)
    ids = [record.image_id for record in ordered]
    assert ids[-2:] == ["a", "b"]
    assert ids[:-2] == sorted(ids[:-2])
    assert in_order(dict(reversed(every.items()))) == ordered
    assert [record is every[0] for record in ordered if record.image_id == every[0].image_id] == [True, False]


@pytest.mark.parametrize("masks", [False, True])
def test_detections_need_few_bytes(masks: bool) -> None:
    """As arrays, and masks as run lengths, whose size depends on the outline and not on the area of the image."""
    sizes = {}
    for count, side in ((100, 50.0), (200, 50.0), (200, 100.0)):
        corners = np.random.default_rng(0).uniform(0, 4000, (count, 2))
        boxes = torch.from_numpy(np.concatenate([corners, corners + side], axis=1)).float()
        shape = torch.from_numpy(np.hypot(*np.mgrid[-1:1:28j, -1:1:28j]) < 0.9).float().expand(count, -1, -1)
        found = as_found(
            Detections(boxes, torch.ones(count), torch.zeros(count, dtype=torch.int64), shape if masks else None),
            (4200, 4200),
        )
        assert [part.dtype for part in (found.boxes, found.scores, found.classes)] == [np.float32, np.float32, np.int64]
        sizes[count, side] = len(pickle.dumps(found))
    assert (sizes[200, 50.0] - sizes[100, 50.0]) / 100 < (28 + 300 if masks else 28.1)
    assert sizes[200, 100.0] <= (2.2 if masks else 1) * sizes[200, 50.0]


def test_records_travel_between_ranks() -> None:
    record = records(1)[0]
    again = pickle.loads(pickle.dumps(record))
    assert again.truth.masks == record.truth.masks
    part = again.found.chosen(again.found.scores >= 0.5)
    assert len(part) == len(part.masks) == int((record.found.scores >= 0.5).sum())
