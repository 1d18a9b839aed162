"""Figures that tasks draw of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from swinv2_train.lettering import font, wrapped
from swinv2_train.tracking.figures import BACKGROUND, INK, image_grid

RIGHT, WRONG = "#2a9d4a", "#d03030"
_SIDE = 160
_FRAME = 5
_TEXT = 13
_MOST_LINES = 6
_LISTED = 3
_COLUMNS = 8


def prediction_sheet(
    images: Sequence[Image.Image],
    truths: Sequence[Mapping[int, float]],
    predictions: Sequence[Mapping[int, float]],
    class_names: Sequence[str] | None = None,
    *,
    exact: bool = False,
) -> Image.Image:
    """Return images with their true and predicted classes below, framed in green if the prediction is right, else red.

    Long names continue on further lines, six at most.

    Args:
        images: as they are shown.
        truths: per image, the fraction of each of its classes; several if it is mixed or has several.
        predictions: per image, the probability of each predicted class.
        exact: "right" means the same set of classes; otherwise, the first predicted class is the one with the largest
            fraction.
    """
    letters = font(_TEXT)
    upper = [_lines(truth, class_names, letters, numbers=any(part != 1 for part in truth.values())) for truth in truths]
    lower = [_lines(predicted, class_names, letters, numbers=True) for predicted in predictions]
    room = max(len(first) + len(second) for first, second in zip(upper, lower, strict=True))
    colors = [
        RIGHT if _is_right(truth, predicted, exact=exact) else WRONG
        for truth, predicted in zip(truths, predictions, strict=True)
    ]
    tiles = [
        _tile(image, (first, second), room, color)
        for image, first, second, color in zip(images, upper, lower, colors, strict=True)
    ]
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    return image_grid(rows, footer="black: true class, colored: prediction; green: right, red: wrong")


def _is_right(truth: Mapping[int, float], predicted: Mapping[int, float], *, exact: bool) -> bool:
    if exact:
        return set(truth) == set(predicted)
    return _ranked(predicted)[:1] == _ranked(truth)[:1]


def _ranked(shares: Mapping[int, float]) -> list[int]:
    return sorted(shares, key=lambda label: (-shares[label], label))


def _tile(picture: Image.Image, texts: tuple[Sequence[str], Sequence[str]], room: int, color: str) -> Image.Image:
    """Return one framed image with its true and its predicted classes below.

    Args:
        texts: lines of the true and of the predicted classes.
        room: number of lines to leave for both.
    """
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    letters = font(_TEXT)
    side, step = _SIDE + 2 * _FRAME, _TEXT + 4
    tile = Image.new("RGB", (side, side + room * step), BACKGROUND)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, side - 1, side - 1), fill=color)
    tile.paste(picture.convert("RGB"), ((side - size[0]) // 2, (side - size[1]) // 2))
    for first, lines, ink in ((0, texts[0], INK), (len(texts[0]), texts[1], color)):
        for row, line in enumerate(lines, first):
            draw.text((1, side + 1 + row * step), line, ink, letters)
    return tile


def _lines(
    shares: Mapping[int, float],
    class_names: Sequence[str] | None,
    letters: ImageFont.FreeTypeFont,
    *,
    numbers: bool,
) -> list[str]:
    """Return the first few classes by fraction, such as `cat 0.71, dog 0.29`, wrapped to the width of a tile."""
    words = []
    for label in _ranked(shares)[:_LISTED]:
        name = class_names[label] if class_names and label < len(class_names) else f"class {label}"
        words.append(f"{name} {shares[label]:.2f}" if numbers else name)
    return wrapped(", ".join(words) or "none", letters, _SIDE + 2 * _FRAME - 2, _MOST_LINES)
