"""Copy-paste: pixels, masks, and boxes against a plain reference, and which covered objects remain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.data.mix import partner_of
from swinv2_train.tasks.detection.annotations import Annotations
from swinv2_train.tasks.detection.copy_paste import draw_pasted, paste, pasted_image
from swinv2_train.tasks.detection.task import Detection
from tests.tasks.detection.test_transform import config, content, entries, sample, scene, training

SIZE = (60, 80)


def filled(*boxes: tuple[int, int, int, int], classes: list[int] | None = None) -> Annotations:
    """Objects whose masks fill their boxes: left, top, right, bottom."""
    return Annotations(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes or range(len(boxes)), np.int64),
        np.zeros((0, 4), np.float32),
        [(top, left, bottom, right) for left, top, right, bottom in boxes],
        [np.ones((bottom - top, right - left), np.uint8) for left, top, right, bottom in boxes],
    )


def canvas_masks(found: Annotations, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    masks = []
    for (top, left, bottom, right), bitmap in zip(found.windows, found.bitmaps, strict=True):
        masks.append(np.zeros(size, bool))
        masks[-1][top:bottom, left:right] = bitmap
    return masks


def test_covered_objects_lose_pixels_or_are_dropped() -> None:
    own = filled(
        (0, 0, 10, 10),  # untouched
        (20, 0, 50, 10),  # covered by 8 of its columns: the box moves by 8 pixels
        (20, 20, 32, 32),  # covered but for 12 pixels
        (0, 25, 60, 58),  # covered by a part, which leaves its box
        (60, 40, 70, 50),  # covered entirely
    )
    other = filled((42, 0, 60, 12), (20, 20, 31, 32), (58, 38, 80, 60), classes=[8, 9, 7])
    found, covered = paste(own, other, SIZE, 100)
    assert found.classes.tolist() == [0, 1, 3, 8, 9, 7]
    assert covered.sum() == 18 * 12 + 11 * 12 + 22 * 22
    before, after = canvas_masks(own), canvas_masks(found)
    for number, original in ((0, 0), (1, 1), (2, 3)):
        assert np.array_equal(after[number], before[original] & ~covered)
    assert found.boxes[:3].tolist() == [[0, 0, 10, 10], [20, 0, 42, 10], [0, 25, 60, 58]]
    assert np.array_equal(found.boxes[3:], other.boxes)
    assert own.boxes.tolist()[1] == [20, 0, 50, 10]  # nothing is changed in place
    assert own.bitmaps[1].all()


def test_a_box_that_moves_far_keeps_its_object_if_many_pixels_remain() -> None:
    other = filled((0, 0, 20, 60))
    kept, _ = paste(filled((5, 5, 50, 20)), other, SIZE, 100)  # 30 x 15 pixels remain
    dropped, _ = paste(filled((5, 5, 40, 20)), other, SIZE, 100)  # 20 x 15, which is not more than 300
    assert kept.boxes[0].tolist() == [20, 5, 50, 20]
    assert len(dropped.boxes) == 1


def test_what_is_pasted_is_cut_at_the_border_and_objects_without_masks_stay() -> None:
    own = filled((0, 0, 8, 8))
    own.windows, own.bitmaps = [(0, 0, 0, 0)], [np.zeros((0, 0), np.uint8)]
    other = filled((70, 50, 95, 75), (90, 10, 99, 20), (0, 0, 8, 8))
    found, covered = paste(own, other, SIZE, 100)
    assert found.boxes.tolist() == [[0, 0, 8, 8], [70, 50, 80, 60], [0, 0, 8, 8]]
    assert found.windows[0] == (0, 0, 0, 0)
    assert covered.sum() == 100 + 64
    assert len(paste(own, other, SIZE, 2)[0].boxes) == 2


def test_pixels_come_from_the_image_whose_object_covers_them() -> None:
    own, other = torch.full((3, 20, 30), 10, dtype=torch.uint8), torch.full((3, 40, 25), 20, dtype=torch.uint8)
    covered = np.zeros((40, 30), bool)
    covered[5:30, 3:9] = True
    found = pasted_image(own, other, (40, 30), covered, [0.2, 0.4, 0.6])
    expected = np.zeros((3, 40, 30))
    expected[:] = np.array([51, 102, 153])[:, None, None]
    expected[:, :20] = 10
    expected[:, 5:30, 3:9] = 20
    assert np.array_equal(found.numpy(), expected)
    deep = pasted_image(own, torch.full((3, 40, 25), 700, dtype=torch.uint16), (40, 30), covered, [0.2, 0.4, 0.6])
    assert deep.dtype == torch.uint16
    assert {int(value) for value in np.unique(deep[0].numpy())} == {10 * 257, 700, 13107}


def test_any_number_of_objects_is_drawn_once_each() -> None:
    drawn = [draw_pasted(4, np.random.default_rng(seed)).tolist() for seed in range(60)]
    assert {len(each) for each in drawn} == {0, 1, 2, 3, 4}
    assert all(len(set(each)) == len(each) for each in drawn)
    assert draw_pasted(0, np.random.default_rng(0)).tolist() == []
    assert max(len(draw_pasted(500, np.random.default_rng(seed))) for seed in range(40)) <= 100


def mixed(made: Any, own: int, other: int) -> dict[str, Any]:
    second = sample(scene([(2, 2, 40, 30)], (50, 60)), content([(2, 2, 40, 30)], (50, 60)))
    return made.mix(entries(made, own), entries(made, other, second), np.random.default_rng(own))


@pytest.mark.parametrize("scaling", ["jitter", "short"])
def test_a_mixed_sample_is_a_sample(scaling: str) -> None:
    made = training(scaling=scaling, short_sides=[48], long_side=90, copy_paste=1.0, scale=[0.5, 1.0])
    pasted = 0
    for seed in range(10):
        alone, found = entries(made, seed), mixed(made, seed, seed + 1)
        assert found.keys() == alone.keys()
        assert found["canvas"] == alone["canvas"]
        assert all(side <= most for side, most in zip(found["image"].shape[1:], found["canvas"], strict=True))
        annotations = Annotations.of_entries(found)
        assert len(annotations.windows) == len(found["boxes"]) == len(found["classes"])
        for box, window in zip(found["boxes"].numpy(), found["mask_windows"].numpy(), strict=True):
            assert np.abs(box - window[[1, 0, 3, 2]]).max() <= 1
            assert (window[2:] <= found["image"].shape[1:]).all()
        pasted += not torch.equal(found["classes"], alone["classes"])
    assert pasted


def test_partners_are_a_fixed_fraction_of_the_positions() -> None:
    made = training(copy_paste=0.25)
    partners = {position: made.partner(position) for position in range(200)}
    mixed_with = {position: other for position, other in partners.items() if other is not None}
    assert 30 < len(mixed_with) < 70
    assert all(other == partner_of(position, 1) for position, other in mixed_with.items())
    assert partners == {position: training(copy_paste=0.25).partner(position) for position in range(200)}
    assert not any(training().partner(position) for position in range(20))


def test_objects_without_masks_cannot_be_pasted() -> None:
    settings = config(copy_paste=0.5, masks=True)
    boxes_only = replace(settings, task=replace(settings.task, masks=False))  # as the data has decided
    with pytest.raises(ConfigError, match=r"task\.copy_paste=0\.5: pastes objects by their masks, and .* have none"):
        Detection(boxes_only, [0.5] * 3, [0.25] * 3)
