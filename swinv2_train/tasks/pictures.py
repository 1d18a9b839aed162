"""Figures that tasks draw of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from swinv2_train.lettering import font, wrapped
from swinv2_train.tracking.figures import BACKGROUND, INK, image_grid

RIGHT, WRONG = "#2a9d4a", "#d03030"
_SIDE = 160
_STRIP = 960
"""Width of a film strip."""
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
    strips: bool = False,
) -> Image.Image:
    """Return images with their true and predicted classes below, framed in green if the prediction is right, else red.

    Long names continue on further lines, six at most.

    Args:
        images: as they are shown.
        truths: per image, the fraction of each of its classes; several if it is mixed or has several.
        predictions: per image, the probability of each predicted class.
        exact: "right" means the same set of classes; otherwise, the first predicted class is the one with the largest
            fraction.
        strips: the images are film strips of one size, which are drawn one below the other.
    """
    columns, space = _COLUMNS, (_SIDE, _SIDE)
    if strips:
        columns, space = 1, (_STRIP, round(_STRIP * images[0].height / images[0].width))
    room = space[0] + 2 * _FRAME - 2
    upper = [_lines(truth, class_names, room, numbers=any(part != 1 for part in truth.values())) for truth in truths]
    lower = [_lines(predicted, class_names, room, numbers=True) for predicted in predictions]
    most = max(len(first) + len(second) for first, second in zip(upper, lower, strict=True))
    colors = [
        RIGHT if _is_right(truth, predicted, exact=exact) else WRONG
        for truth, predicted in zip(truths, predictions, strict=True)
    ]
    tiles = [
        _tile(image, (first, second), (*space, most), color)
        for image, first, second, color in zip(images, upper, lower, colors, strict=True)
    ]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return image_grid(rows, footer="black: true class, colored: prediction; green: right, red: wrong")


def _is_right(truth: Mapping[int, float], predicted: Mapping[int, float], *, exact: bool) -> bool:
    if exact:
        return set(truth) == set(predicted)
    return _ranked(predicted)[:1] == _ranked(truth)[:1]


def _ranked(shares: Mapping[int, float]) -> list[int]:
    return sorted(shares, key=lambda label: (-shares[label], label))


def _tile(
    picture: Image.Image, texts: tuple[Sequence[str], Sequence[str]], space: tuple[int, int, int], color: str
) -> Image.Image:
    """Return one framed image with its true and its predicted classes below.

    Args:
        texts: lines of the true and of the predicted classes.
        space: width and height that the image fills, and the number of lines to leave for both texts.
    """
    scale = min(space[0] / picture.width, space[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    letters = font(_TEXT)
    width, height, step = space[0] + 2 * _FRAME, space[1] + 2 * _FRAME, _TEXT + 4
    tile = Image.new("RGB", (width, height + space[2] * step), BACKGROUND)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, width - 1, height - 1), fill=color)
    tile.paste(picture.convert("RGB"), ((width - size[0]) // 2, (height - size[1]) // 2))
    for first, lines, ink in ((0, texts[0], INK), (len(texts[0]), texts[1], color)):
        for row, line in enumerate(lines, first):
            draw.text((1, height + 1 + row * step), line, ink, letters)
    return tile


def _lines(
    shares: Mapping[int, float],
    class_names: Sequence[str] | None,
    width: int,
    *,
    numbers: bool,
) -> list[str]:
    """Return the first few classes by fraction, such as `cat 0.71, dog 0.29`, wrapped to a width in pixels."""
    words = []
    for label in _ranked(shares)[:_LISTED]:
        name = class_names[label] if class_names and label < len(class_names) else f"class {label}"
        words.append(f"{name} {shares[label]:.2f}" if numbers else name)
    return wrapped(", ".join(words) or "none", font(_TEXT), width, _MOST_LINES)
