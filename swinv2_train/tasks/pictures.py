"""Figures that tasks draw of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from swinv2_train.lettering import fitted, font
from swinv2_train.tracking.figures import BACKGROUND, INK, image_grid, to_pil

RIGHT, WRONG = "#2a9d4a", "#d03030"
_SIDE = 160
_FRAME = 5
_TEXT = 13
_LINES = 2
_LISTED = 3
_COLUMNS = 8


def prediction_sheet(
    images: Sequence[np.ndarray],
    truths: Sequence[Mapping[int, float]],
    predictions: Sequence[Mapping[int, float]],
    class_names: Sequence[str] | None = None,
    *,
    exact: bool = False,
) -> Image.Image:
    """Return images with their true and predicted classes below, framed in green if the prediction is right, else red.

    Args:
        images: each (C, H, W) with values in [0, 1].
        truths: per image, the fraction of each of its classes; several if it is mixed or has several.
        predictions: per image, the probability of each predicted class.
        exact: "right" means the same set of classes; otherwise, the first predicted class is the one with the largest
            fraction.
    """
    tiles = [
        _tile(image, truth, predicted, class_names, _is_right(truth, predicted, exact=exact))
        for image, truth, predicted in zip(images, truths, predictions, strict=True)
    ]
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    return image_grid(rows, footer="first line: true class, second: prediction; green: right, red: wrong")


def _is_right(truth: Mapping[int, float], predicted: Mapping[int, float], *, exact: bool) -> bool:
    if exact:
        return set(truth) == set(predicted)
    return _ranked(predicted)[:1] == _ranked(truth)[:1]


def _ranked(shares: Mapping[int, float]) -> list[int]:
    return sorted(shares, key=lambda label: (-shares[label], label))


def _tile(
    image: np.ndarray,
    truth: Mapping[int, float],
    predicted: Mapping[int, float],
    class_names: Sequence[str] | None,
    right: bool,
) -> Image.Image:
    picture = to_pil(image)
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    letters = font(_TEXT)
    colour = RIGHT if right else WRONG
    side = _SIDE + 2 * _FRAME
    tile = Image.new("RGB", (side, side + _LINES * (_TEXT + 4)), BACKGROUND)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, side - 1, side - 1), fill=colour)
    tile.paste(picture.convert("RGB"), ((side - size[0]) // 2, (side - size[1]) // 2))
    whole = all(share == 1 for share in truth.values())
    lines = (_listed(truth, class_names, numbers=not whole), _listed(predicted, class_names, numbers=True))
    for row, (text, ink) in enumerate(zip(lines, (INK, colour), strict=True)):
        draw.text((1, side + 1 + row * (_TEXT + 4)), fitted(text, letters, side - 2), ink, letters)
    return tile


def _listed(shares: Mapping[int, float], class_names: Sequence[str] | None, *, numbers: bool) -> str:
    """Return the first few classes by fraction, as `cat 0.71, dog 0.29`."""
    words = []
    for label in _ranked(shares)[:_LISTED]:
        name = class_names[label] if class_names and label < len(class_names) else f"class {label}"
        words.append(f"{name} {shares[label]:.2f}" if numbers else name)
    return ", ".join(words) or "none"
