"""Objects of a sample: JSON and back, and what is not an object is named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.objects import MEMBER, Objects
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from tests.data.samples import jpeg

CONTENT = {
    "id": 397133,
    "width": 32,
    "height": 24,
    "objects": [
        {
            "bbox": [1.5, 2.0, 10.25, 4.0],
            "category": 1,
            "iscrowd": 0,
            "area": 20.5,
            "id": 82445,
            "segmentation": [[1.5, 2.0, 11.75, 2.0, 11.75, 6.0]],
        },
        {
            "bbox": [0.0, 0.0, 32.0, 24.0],
            "category": 0,
            "iscrowd": 1,
            "area": 12.0,
            "id": None,
            "segmentation": {"size": [24, 32], "counts": "P13"},
        },
        {"bbox": [4.0, 4.0, 2.0, 2.0], "category": 7, "iscrowd": 0, "area": 4.0, "id": "x"},
    ],
}


def sample(content: Any) -> Sample:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Sample(RawSample("a", "jpg", {"image": jpeg(0), MEMBER: data}))


def test_json_and_back() -> None:
    one = sample(CONTENT)
    found = one.objects()
    assert one.objects() is found
    assert found.to_json() == CONTENT
    assert found.boxes.tolist() == [[1.5, 2, 11.75, 6], [0, 0, 32, 24], [4, 4, 6, 6]]
    assert (found.size, found.image_id, len(found)) == ((24, 32), 397133, 3)
    assert (found.categories.dtype, found.crowd.tolist()) == (np.int64, [False, True, False])
    assert found.taken(np.array([2, 0])).ids == ("x", 82445)
    assert found.taken(~found.crowd).to_json()["objects"] == [CONTENT["objects"][0], CONTENT["objects"][2]]  # type: ignore[index]


def test_an_image_without_objects_has_an_empty_list() -> None:
    empty = {"id": None, "width": 3, "height": 4, "objects": []}
    found = Objects.from_json(empty)
    assert (found.boxes.shape, found.categories.dtype, found.to_json()) == ((0, 4), np.int64, empty)
    assert Objects((4, 3)).to_json() == empty


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [1, 2, 3]}, r"object 1: its bbox \[1, 2, 3\] is not four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "is not four numbers"),
        ({"bbox": [1, 2, -3, 1]}, "has a negative width or height"),
        ({"category": -1}, "its category -1 is not a number from 0"),
        ({"category": "cat"}, "its category 'cat' is not a number from 0"),
        ({"iscrowd": 2}, "its iscrowd 2 is not 0 or 1"),
        ({"area": None}, "its area None is not a number"),
        ({"id": [1]}, r"its id \[1\] is not a number or a text"),
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon that is not pairs of numbers for three points"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "a coordinate that is not a number"),
        ({"segmentation": []}, "neither polygons nor RLE"),
        ({"segmentation": {"size": [24, 32], "counts": [768]}}, "not a compressed RLE"),
    ],
)
def test_entries_that_are_not_objects_are_named(change: dict[str, Any], reason: str) -> None:
    objects = list(CONTENT["objects"])  # type: ignore[call-overload]
    objects[1] = objects[1] | change
    with pytest.raises(BrokenSample, match=f"^{MEMBER}: object 1: .*" if "object" in reason else reason):
        sample(CONTENT | {"objects": objects}).objects()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "objects.json: not JSON"),
        ([], "objects.json: it has no list of objects"),
        ({"objects": [], "width": 0, "height": 4}, "its width and height are 0 and 4"),
        ({"objects": [], "width": 4, "height": 4, "id": [1]}, r"objects.json: its id \[1\] is not a number or a text"),
        ({"objects": [3], "width": 4, "height": 4}, "object 0: it is not a JSON object"),
    ],
)
def test_members_of_another_form_break_the_sample(content: Any, reason: str) -> None:
    with pytest.raises(BrokenSample, match=reason):
        sample(content).objects()
