"""Label maps that were resized with interpolation are found, and real ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.label_smoothing import is_smooth, is_smooth_scene, smooth_warning


def polygons(seed: int, classes: int, outline: int | None = None, size: tuple[int, int] = (150, 200)) -> np.ndarray:
    """Overlapping shapes of random classes, as annotators draw them; uint8."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", size[::-1], int(rng.integers(classes)))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
        radii = rng.uniform(0.05, 0.3) * min(size) * rng.uniform(0.5, 1, len(angles))
        points = rng.uniform(0, 1, 2) * size[::-1] + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        draw.polygon(list(map(tuple, points.tolist())), fill=int(rng.integers(classes)), outline=outline)
    return np.array(image)


def resized(labels: np.ndarray, factor: float, how: Image.Resampling) -> np.ndarray:
    size = round(labels.shape[1] * factor), round(labels.shape[0] * factor)
    return np.array(Image.fromarray(labels).resize(size, how))


def digits() -> np.ndarray:
    """Handwritten digits whose pixels have the class of the digit, 1 to 10, on class 0."""
    found = load_digits()
    tiles = (found.images[:60] > 7) * (found.target[:60, None, None] + 1)
    large = tiles.repeat(3, 1).repeat(3, 2).reshape(6, 10, 24, 24).transpose(0, 2, 1, 3)
    return large.reshape(144, 240).astype(np.uint8)


def noisy() -> np.ndarray:
    """Predictions with speckles."""
    rng, labels = np.random.default_rng(0), polygons(1, 20)
    wrong = rng.random(labels.shape) < 0.2
    labels[wrong] = rng.integers(0, 20, wrong.sum())
    return labels


def slopes() -> np.ndarray:
    """Classes of heights, which follow each other by their nature."""
    y, x = np.mgrid[:150, :150]
    return (10 + 9 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)


def ordered() -> dict[str, np.ndarray]:
    """Correct label maps whose classes are an order, uint8, at most 60."""
    y, x = np.mgrid[:150, :200]
    wooded = polygons(2, 2, size=(600, 800)).reshape(150, 4, 200, 4).mean((1, 3))
    distance = np.clip(30 - np.hypot(x % 100 - 50, y % 100 - 50), 0, 20).astype(np.uint8)
    return {
        **{f"slopes at {factor}": resized(slopes(), factor, Image.Resampling.NEAREST) for factor in (0.25, 0.4, 0.5)},
        "tree cover": np.round(wooded * 10).astype(np.uint8),
        "cover in 8 classes": np.digitize(wooded, np.linspace(0.06, 0.94, 7)).astype(np.uint8),
        **{f"distances in steps of {step}": distance * step for step in (2, 3)},
    }


def instances() -> np.ndarray:
    """Discs with a number each, uint16, whose outlines of two pixels are classes 3 and 4."""
    y, x = np.mgrid[:200, :200]
    found = np.zeros((200, 200), np.uint16)
    for number, (top, left) in enumerate(np.random.default_rng(0).integers(0, 200, (60, 2)), 5):
        distance = np.hypot(y - top, x - left)
        for value, radius in ((3, 12), (4, 11), (number, 10)):
            found[distance <= radius] = value
    return found


REAL = {
    **{f"{k} classes": polygons(k, k) for k in (2, 6, 20, 150)},
    "outlines": polygons(3, 20, outline=1),
    "instances with outlines": instances(),
    "digits": digits(),
    "noise": noisy(),
    "slopes": slopes(),
    "random": np.random.default_rng(0).integers(0, 20, (100, 100)).astype(np.uint8),
    "empty": np.zeros((0, 0), np.uint8),
    "a line": np.arange(200, dtype=np.uint8)[None],
}


@pytest.mark.parametrize("case", REAL)
def test_real_label_maps_pass(case: str) -> None:
    assert not is_smooth(REAL[case], 255)
    if min(REAL[case].shape) > 1:
        factors = (1.5, 2) if case == "slopes" else (0.5, 1.5, 2)  # at half its size, a slope is one of two classes
        for factor in factors:
            assert not is_smooth(resized(REAL[case], factor, Image.Resampling.NEAREST), 255)


@pytest.mark.parametrize("factor", [0.375, 0.5, 1.5, 2, 3.9])
@pytest.mark.parametrize("how", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_interpolated_label_maps_are_found(factor: float, how: Image.Resampling) -> None:
    """With every value a valid class: of 20 classes, and of regions of classes 0 and 15."""
    far = (polygons(1, 2) * 15).astype(np.uint8)
    for labels in (polygons(20, 20), far, digits()[:, :200]):
        assert is_smooth(np.minimum(resized(labels, factor, how), 19), 255)


def test_borders_of_pixels_without_a_class_do_not_count() -> None:
    smooth = resized((polygons(1, 2) * 15).astype(np.uint8), 2, Image.Resampling.BILINEAR)
    assert is_smooth(smooth, 255)
    assert not is_smooth(smooth, 15)


def test_large_maps_are_judged_by_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them if there are few borders, else rows from everywhere; a part that cannot be read does not count."""
    from swinv2_train.data import label_smoothing

    smooth = np.minimum(resized(polygons(20, 20), 2, Image.Resampling.BILINEAR), 19)
    monkeypatch.setattr(label_smoothing, "_PIECE", (64, 128))
    read: list[tuple[int, int, int, int]] = []

    def part(box: tuple[int, int, int, int]) -> np.ndarray:
        read.append(box)
        top, left, height, width = box
        if top == 64:
            raise BrokenSample("it is damaged")
        return smooth[top : top + height, left : left + width]

    assert is_smooth_scene((300, 400), part, 255)
    assert sum(height * width for _, _, height, width in read) == 300 * 400
    assert max(height * width for _, _, height, width in read) == 64 * 128
    for name, value in (("_ENOUGH", 50), ("_MOST", 64 * 400)):
        with monkeypatch.context() as changed:
            changed.setattr(label_smoothing, name, value)
            read.clear()
            assert is_smooth_scene((300, 400), part, 255)
            assert {top for top, *_ in read} == {0}
    read.clear()
    assert not is_smooth_scene((300, 400), lambda box: part(box) * 0, 255)
    assert len({top for top, *_ in read}) == 5


def test_the_warning_counts_and_names_label_maps() -> None:
    assert smooth_warning(["a"]).startswith("1 label map looks as if it was resized with interpolation (a): ")
    assert smooth_warning(list("abcd")).startswith(
        "4 label maps look as if they were resized with interpolation (a, b, c, ...)"
    )
