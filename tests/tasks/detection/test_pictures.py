"""Pictures of detections: colors by class, masks half transparent, errors dashed, the worst images first."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from swinv2_train.tasks.detection.masks import pasted
from swinv2_train.tasks.detection.pictures import Shown, detection_picture, detection_sheet
from swinv2_train.tasks.detection.records import Found, ImageRecord
from swinv2_train.tasks.segmentation.colors import object_color

NAMES = ["kite", "buoy", "a gull whose name is longer than any label has room for", "crab"]
SIZE = (60, 90)


def found(objects: list[tuple[float, ...]], classes: list[int], scores: list[float] | None = None) -> Found:
    boxes = np.array(objects, np.float32).reshape(-1, 4)
    masks = pasted(np.ones((len(boxes), 28, 28), np.float32), boxes, SIZE)
    given = np.ones(len(boxes)) if scores is None else np.array(scores)
    return Found(boxes, np.array(classes, np.int64), given.astype(np.float32), masks)


LEFT, RIGHT = (5, 25, 25, 50), (50, 25, 80, 55)


def shown(image_id: int, detections: Found, value: float = 1.0, channels: int = 3) -> Shown:
    truth = found([LEFT, RIGHT], [0, 3])
    return Shown(np.full((channels, *SIZE), value, np.float32), ImageRecord(image_id, SIZE, truth, detections))


def share(picture: Image.Image, color: tuple[int, ...], tolerance: int = 0) -> float:
    return float((abs(np.asarray(picture).astype(int) - color) <= tolerance).all(axis=2).mean())


def test_boxes_masks_and_names_have_the_color_of_the_class() -> None:
    picture = detection_picture(np.ones((3, *SIZE), np.float32), found([LEFT, RIGHT], [0, 3], [0.9, 0.5]), SIZE, NAMES)
    assert picture.size == (90 * 6, 60 * 6)
    for (left, top, right, bottom), number in ((LEFT, 0), (RIGHT, 3)):
        color = np.array(object_color(number))
        pixels = np.asarray(picture).astype(int)
        assert tuple(pixels[6 * (top + bottom) // 2, 6 * left]) == tuple(color)
        inside = pixels[6 * top + 8 : 6 * bottom - 8, 6 * left + 8 : 6 * right - 8]
        assert abs(inside - (0.55 * 255 + 0.45 * color)).max() <= 1
        assert tuple(pixels[6 * top - 2, 6 * left + 1]) == tuple(color)  # the name is above the box
    assert share(picture, (255, 255, 255)) > 0.6
    assert object_color(0) != (0, 0, 0)  # which a label map has for the background


def test_a_single_class_needs_no_names() -> None:
    white = np.ones((3, *SIZE), np.float32)
    plates = [
        share(detection_picture(white, found([LEFT], [0], [0.9]), SIZE, names), object_color(0))
        for names in (["kite"], ["kite", "crab"])
    ]
    assert 0 < plates[0] < plates[1]


def test_of_many_objects_only_the_first_have_a_name() -> None:
    corner = np.stack(np.meshgrid(np.arange(0, 2000, 80), np.arange(40, 1000, 80)), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([corner, corner + 8], axis=1).astype(np.float32)
    white, size = np.ones((3, 1000, 2000), np.float32), (1000, 2000)

    def plates(count: int) -> float:
        objects = Found(boxes[:count], np.zeros(count, np.int64), np.linspace(1, 0.5, count, dtype=np.float32))
        return share(detection_picture(white, objects, size, ["kite", "crab"]), object_color(0)) - count * frame

    frame = 0.0
    alone = detection_picture(
        white, Found(boxes[:1], np.zeros(1, np.int64), np.ones(1, np.float32)), size, ["kite", "x"]
    )
    assert share(alone, object_color(0)) > 0
    few, many, more = plates(20), plates(100), plates(300)
    assert many > 1.5 * few
    assert (more - many) / 200 < few / 20 / 4  # a box without a name has little of the color


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_dark_images_of_16_bits_are_stretched(channels: int) -> None:
    dark = np.zeros((channels, *SIZE), np.float32)
    dark[:, :, 45:] = 0.02
    picture = detection_picture(dark, found([], []), SIZE, NAMES, deep=True)
    assert share(picture, (255, 255, 255)) == pytest.approx(0.5, abs=0.01)
    assert share(picture, (0, 0, 0)) == pytest.approx(0.5, abs=0.01)


def test_a_large_image_is_reduced_and_objects_keep_their_place() -> None:
    image = np.ones((1, 30, 45), np.float32)
    large = np.ones((1, 6000, 10), np.float32)
    assert detection_picture(large, found([], []), (6000, 10), NAMES).size == (3, 2048)
    half = detection_picture(image, found([RIGHT], [1]), SIZE, NAMES)  # half as large as the original
    pixels = np.asarray(half).astype(int)
    place = (np.array([RIGHT[1] + RIGHT[3], RIGHT[0] + RIGHT[2]]) / 2 * half.height / SIZE[0]).astype(int)
    assert abs(pixels[tuple(place)] - (0.55 * 255 + 0.45 * np.array(object_color(1)))).max() <= 1


def test_the_worst_images_are_first() -> None:
    right = shown(1, found([LEFT, RIGHT], [0, 3], [0.9, 0.9]))
    missed = shown(2, found([LEFT, RIGHT], [0, 3], [0.9, 0.2]), value=0.5)
    worst = shown(3, found([LEFT, (60, 0, 70, 20)], [1, 2], [0.9, 0.8]), value=0.8)
    sheet = detection_sheet([right, missed, worst], NAMES, 0.5)
    pixels = np.asarray(sheet)
    column = pixels[:, sheet.width // 2 - 30]
    first = [int(np.flatnonzero((column == value).all(axis=1))[0]) for value in (204, 128)]
    assert first == sorted(first)
    # Dashed boxes have less of the color than others, here those of the missed kite and of the crab.
    errors = detection_sheet([shown(1, found([], []))], NAMES, 0.5)
    hits = detection_sheet([right], NAMES, 0.5)
    halves = [np.asarray(each)[:, : each.width // 2 + 20] for each in (errors, hits)]
    counts = [int((half == object_color(3)).all(axis=2).sum()) for half in halves]
    assert 0 < counts[0] < counts[1]


def test_crowd_regions_many_objects_and_nothing_at_all() -> None:
    crowded = shown(1, found([LEFT], [0], [0.9]))
    crowded.record.truth.crowd = np.array([False, True])
    gray = share(detection_sheet([crowded], NAMES, 0.5), (128, 128, 128))
    assert gray > share(detection_sheet([shown(1, found([LEFT], [0]))], NAMES, 0.5), (128, 128, 128))
    rng = np.random.default_rng(0)
    corner = rng.random((300, 2)) * 50
    boxes = np.concatenate([corner, corner + rng.random((300, 2)) * 10], axis=1)
    many = Found(boxes, np.arange(300) % 70, rng.random(300).astype(np.float32))
    names = [f"class {number}" for number in range(70)]
    empty = many.chosen(np.zeros(0, int))
    blank = Shown(np.zeros((3, *SIZE), np.float32), ImageRecord("x", SIZE, empty, many))
    assert detection_sheet([blank], names, 0.0).height > detection_sheet([blank], names, 2.0).height
