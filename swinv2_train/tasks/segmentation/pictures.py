"""Figures of a segmenter: image, truth, prediction, and errors in a row for each image, and a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from swinv2_train.tasks.segmentation.colors import painted, palette, stripes
from swinv2_train.tracking.figures import SWATCH, image_grid, to_pil, with_legend

WRONG = (208, 48, 48)
_LONG_SIDE = 256
_SHORTEST_SIDE = 16
_MOST_ENTRIES = 60


@dataclass(frozen=True)
class Segmented:
    """One image with its label map and its prediction."""

    image: np.ndarray
    """(C, h, w) with values in [0, 1]."""
    truth: np.ndarray
    """(H, W) class numbers, and the ignored value. Its size may differ from that of the image."""
    predicted: np.ndarray
    """(H, W) class numbers."""
    title: str = ""
    deep: bool = False
    """True for an image of 16 bits, which is stretched for display."""


def segmentation_sheet(
    shown: Sequence[Segmented], num_classes: int, ignore: int, names: Sequence[str] | None = None, caption: str = ""
) -> Image.Image:
    """Return a row per image: the image, its label map, the prediction, and the wrong pixels in red on gray.

    Ignored pixels are striped. The legend has the classes that occur in these images, at most 60, by their pixels.

    Args:
        ignore: label of the pixels that do not count.
        names: of the classes; their numbers if it is None.
        caption: text below the legend.
    """
    rows = [_panels(each, num_classes, ignore) for each in shown]
    titles = [each.title for each in shown] if any(each.title for each in shown) else []
    grid = image_grid(rows, column_titles=["image", "truth", "prediction", "errors"], row_titles=titles)
    return with_legend(grid, _entries(shown, num_classes, ignore, names), caption)


def _panels(shown: Segmented, num_classes: int, ignore: int) -> list[Image.Image]:
    height, width = shown.truth.shape
    scale = _LONG_SIDE / max(height, width)
    size = (max(_SHORTEST_SIDE, round(width * scale)), max(_SHORTEST_SIDE, round(height * scale)))
    picture = to_pil(shown.image, stretch=shown.deep)
    enlarged = picture.width < size[0]
    picture = picture.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC).convert("RGB")
    truth, predicted = (_nearest(labels, size) for labels in (shown.truth, shown.predicted))
    ignored = truth == ignore
    gray = np.asarray(picture.convert("L"), np.float32)
    errors = np.repeat((0.5 * gray + 96)[..., None], 3, axis=2).astype(np.uint8)  # pale, so that red stands out
    errors[(truth != predicted) & ~ignored] = WRONG
    arrays = [painted(truth, num_classes), painted(predicted, num_classes), errors]
    for array in (arrays[0], arrays[2]):
        array[ignored] = stripes(truth.shape)[ignored]
    return [picture, *(Image.fromarray(array) for array in arrays)]


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a label map of width and height `size`, each pixel one of the source."""
    rows, columns = (
        (2 * np.arange(length) + 1) * extent // (2 * length)
        for length, extent in zip(size[::-1], labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def _entries(
    shown: Sequence[Segmented], num_classes: int, ignore: int, names: Sequence[str] | None
) -> list[tuple[np.ndarray, str]]:
    """Return swatch and text of every entry of the legend: the classes by number, ignored, wrong."""
    counts: dict[int, int] = {}
    for each in shown:
        for labels in (each.truth, each.predicted):
            for number, count in zip(*np.unique(labels, return_counts=True), strict=True):
                counts[int(number)] = counts.get(int(number), 0) + int(count)
    has_ignored = counts.pop(ignore, 0) > 0
    most = sorted(counts, key=lambda number: (-counts[number], number))[:_MOST_ENTRIES]
    colors = palette(num_classes)
    side = (SWATCH, SWATCH)
    entries = [
        (np.full((*side, 3), colors[number], np.uint8), names[number] if names else f"class {number}")
        for number in sorted(most)
    ]
    if len(counts) > len(most):
        entries.append((np.full((*side, 3), 255, np.uint8), f"and {len(counts) - len(most)} more"))
    if has_ignored:
        entries.append((stripes(side), "ignored"))
    return [*entries, (np.full((*side, 3), WRONG, np.uint8), "wrong")]
