"""Pictures of detections: boxes with names and scores, masks over the image, colors by the number of the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from swinv2_train.lettering import fitted, font
from swinv2_train.tasks.detection.masks import sampled
from swinv2_train.tasks.detection.matching import IGNORED, Matches, match
from swinv2_train.tasks.detection.records import Found, ImageRecord
from swinv2_train.tasks.segmentation.colors import IGNORED as GRAY
from swinv2_train.tasks.segmentation.colors import object_color
from swinv2_train.tracking.figures import SWATCH, image_grid, to_pil, with_legend

LONGEST_SIDE = 2048
"""Longer side of a picture of a single image at most."""
_LEAST_SIDE = 512
_PANEL = 400
_OPACITY = 0.45
_DASH = 5
_NAME = 0.25
"""Width of a name as a fraction of the picture, unless its box is wider."""
_MOST_ENTRIES = 60
_MOST_NAMED = 40
"""Objects of a picture with a name and a score, those with the highest scores: more would cover the image."""


@dataclass(frozen=True)
class Shown:
    """One image with its record."""

    image: np.ndarray
    """(C, h, w) with values in [0, 1]. Its size may differ from that of the record."""
    record: ImageRecord
    deep: bool = False
    """True for an image of 16 bits, which is stretched for display."""


def detection_sheet(shown: Sequence[Shown], names: Sequence[str], threshold: float) -> Image.Image:
    """Return a row per image: its objects, and its detections; the images with the most errors first.

    The errors of an image are its missed objects, false alarms, and confused classes above the threshold (see
    `matching`); they have dashed boxes. Crowd regions are gray. The legend has the classes that occur.

    Args:
        names: of the classes.
        threshold: lowest score of the detections to draw.
    """
    matched = [(each, match(each.record, threshold)) for each in shown]
    matched.sort(key=lambda pair: -pair[1].errors)  # stable: equal ones keep their order
    rows = [_panels(each, matches, names, threshold) for each, matches in matched]
    titles = [f"{len(one.missed)} missed\n{one.errors - len(one.missed)} wrong" for _, one in matched]
    grid = image_grid(rows, column_titles=["objects", f"detections, score {threshold:.2f} or more"], row_titles=titles)
    caption = "dashed: missed objects, false alarms, and confused classes"
    return with_legend(grid, _entries([each.record for each, _ in matched], names, threshold), caption)


def detection_picture(
    image: np.ndarray,
    found: Found,
    size: tuple[int, int],
    names: Sequence[str],
    *,
    deep: bool = False,
) -> Image.Image:
    """Return an image with boxes, names, scores, and masks.

    Its longer side has at most 2048 pixels; a small image is enlarged by a whole factor.

    Args:
        image: (C, h, w) with values in [0, 1]; may be smaller than the original.
        found: objects in pixels of the original image.
        size: height and width of the original image.
        deep: True for an image of 16 bits, which is stretched for display.
    """
    height, width = image.shape[1:]
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    if max(height, width) < _LEAST_SIDE:
        factor = float(-(-_LEAST_SIDE // max(height, width)))
    picture = _resized(_visible(image, deep=deep), (max(1, round(width * factor)), max(1, round(height * factor))))
    return _drawn(picture, _Layer(found, size, scores=True), names)


@dataclass(frozen=True)
class _Layer:
    """Objects to draw over an image."""

    found: Found
    size: tuple[int, int]
    """Height and width of the image that their pixels refer to."""
    scores: bool
    dashed: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Numbers of the objects with dashed boxes."""


def _panels(shown: Shown, matches: Matches, names: Sequence[str], threshold: float) -> list[Image.Image]:
    """Return the image with its objects, and with its detections."""
    record = shown.record
    height, width = record.size
    scale = _PANEL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = _resized(_visible(shown.image, deep=shown.deep), size)
    above = np.flatnonzero(record.found.scores >= threshold)
    right = matches.hits | (matches.objects == IGNORED)
    detections = _Layer(record.found.chosen(above), record.size, True, np.flatnonzero(~right[above]))
    objects = _Layer(record.truth, record.size, False, matches.missed)
    return [_drawn(picture.copy(), layer, names) for layer in (objects, detections)]


def _visible(image: np.ndarray, *, deep: bool) -> Image.Image:
    return to_pil(image, stretch=deep).convert("RGB")


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    enlarged = picture.width < size[0]
    return picture.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC)


def _drawn(picture: Image.Image, layer: _Layer, names: Sequence[str]) -> Image.Image:
    """Draw masks, boxes, and names; those with high scores are over the others. A single class needs no names, and of
    many objects only the first have one."""
    found = layer.found
    scale = np.array([picture.width / layer.size[1], picture.height / layer.size[0]] * 2)
    boxes = np.asarray(found.boxes, np.float64) * scale
    order = np.argsort(found.scores, kind="stable")[::-1]
    colors = [
        GRAY if crowd else object_color(int(number))
        for number, crowd in zip(found.classes, found.is_crowd, strict=True)
    ]
    if found.masks is not None:
        picture = Image.fromarray(_masked(np.asarray(picture), layer, boxes, colors))
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 400))
    for place in order[::-1]:
        _draw_box(draw, boxes[place], colors[place], line, dashed=bool((layer.dashed == place).any()))
    letters, taken = font(max(11, round(max(picture.size) / 70))), list[tuple[float, ...]]()
    for place in order[:_MOST_NAMED]:
        name = "crowd" if found.is_crowd[place] else names[int(found.classes[place])] if len(names) > 1 else ""
        score = f"{found.scores[place]:.2f}" if layer.scores else ""
        room = max(boxes[place, 2] - boxes[place, 0], _NAME * picture.width) - letters.getlength(f" {score}")
        text = f"{fitted(name, letters, room)} {score}".strip()
        if text:
            _draw_name(draw, picture.size, boxes[place], text, colors[place], taken)
    return picture


def _masked(pixels: np.ndarray, layer: _Layer, boxes: np.ndarray, colors: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with half transparent masks, large objects below small ones."""
    pixels = pixels.astype(np.float32)
    height, width = pixels.shape[:2]
    rows, columns = (
        (2 * np.arange(shown) + 1) * original // (2 * shown)
        for shown, original in ((height, layer.size[0]), (width, layer.size[1]))
    )
    assert layer.found.masks is not None
    for place in np.argsort(-layer.found.box_areas, kind="stable"):
        code = layer.found.masks[place]
        if code is None:
            continue
        # A mask may reach beyond its box by a little; looking at the box alone keeps large images cheap.
        left, top = np.floor(boxes[place, :2]).astype(int).clip(1) - 1
        right, bottom = np.ceil(boxes[place, 2:]).astype(int) + 1
        window = (slice(top, bottom), slice(left, right))
        inside = sampled(code, rows[window[0]], columns[window[1]])
        part = pixels[window]
        part[inside] = (1 - _OPACITY) * part[inside] + _OPACITY * np.array(colors[place], np.float32)
    return np.rint(pixels).astype(np.uint8)


def _draw_box(draw: ImageDraw.ImageDraw, box: np.ndarray, color: tuple[int, ...], line: int, *, dashed: bool) -> None:
    left, top, right, bottom = (round(float(side)) for side in box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    if not dashed:
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
        return
    step = _DASH * line
    for start in range(left, right + 1, step):
        end = min(start + step * 3 // 5, right)
        draw.line((start, top + line // 2, end, top + line // 2), color, line)
        draw.line((start, bottom - line // 2, end, bottom - line // 2), color, line)
    for start in range(top, bottom + 1, step):
        end = min(start + step * 3 // 5, bottom)
        draw.line((left + line // 2, start, left + line // 2, end), color, line)
        draw.line((right - line // 2, start, right - line // 2, end), color, line)


def _draw_name(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: np.ndarray,
    text: str,
    color: tuple[int, ...],
    taken: list[tuple[float, ...]],
) -> None:
    """Write a name above a box, inside of it, or below; omit it if there is no room next to other names.

    Args:
        size: width and height of the picture.
        taken: rectangles of the names so far, to which this one is added.
    """
    letters = font(max(11, round(max(size) / 70)))
    width, height = letters.getlength(text) + 4, letters.size + 3
    left = float(np.clip(box[0], 0, max(0.0, size[0] - width)))
    for top in (box[1] - height, box[1], box[3], box[3] - height):
        place = (left, float(top), left + width, float(top) + height)
        if place[1] < 0 or place[3] > size[1] or any(_meet(place, other) for other in taken):
            continue
        taken.append(place)
        draw.rectangle(place, fill=color)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        draw.text((left + 2, place[1] + height / 2), text, "black" if bright else "white", letters, anchor="lm")
        return


def _meet(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _entries(records: Sequence[ImageRecord], names: Sequence[str], threshold: float) -> list[tuple[np.ndarray, str]]:
    """Return swatch and text of every entry of the legend: the classes by number, and crowd regions."""
    seen: dict[int, int] = {}
    for record in records:
        found = record.found.classes[record.found.scores >= threshold]
        for number in (*record.truth.classes[~record.truth.is_crowd].tolist(), *found.tolist()):
            seen[number] = seen.get(number, 0) + 1
    most = sorted(seen, key=lambda number: (-seen[number], number))[:_MOST_ENTRIES]
    entries = [(_swatch(object_color(number)), names[number]) for number in sorted(most)]
    if len(seen) > len(most):
        entries.append((_swatch((255, 255, 255)), f"and {len(seen) - len(most)} more"))
    if any(record.truth.is_crowd.any() for record in records) or not entries:
        entries.append((_swatch(GRAY), "crowd"))
    return entries


def _swatch(color: tuple[int, ...]) -> np.ndarray:
    return np.full((SWATCH, SWATCH, 3), color, np.uint8)
