"""Figures of a task, built only with PIL: arrays to images, and grids of images with titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from swinv2_train.lettering import fitted, font, wrapped

MARGIN = 12
GAP = 6
TITLE_SIZE = 15
FOOTER_SIZE = 13
MIN_CELL = 128
STRIP_FRAMES = 8
STRIP_GAP = 2
SWATCH = 14
"""Side of a color in a legend."""
_WIDEST_NAME = 220
BACKGROUND = "white"
INK = "#202020"
FOOTER_INK = "#606060"
_FLAT = 1e-6
"""Difference below which values are equal; two neighboring values of 16 bits differ by more."""


def to_pil(image: Any, *, like: Any = None, stretch: bool = False) -> Image.Image:
    """Return a (channels, height, width) array or CPU tensor with values in [0, 1] as an 8-bit image.

    One channel becomes gray and three become RGB, clipped to [0, 1]. For any other number, the first three channels (of
    two, the first, in gray) are shown as RGB, each stretched so that its 2nd to 98th percentile fill the range.
    Non-finite values are shown as 0.

    Args:
        image: the values to show.
        like: use the stretch of this image, which must have the same number of channels: panels that are compared need
            the same stretch.
        stretch: stretch one or three channels as well, all of them by the same percentiles, which keeps colors. Images
            of 16 bits need it, because cameras and satellites rarely use the upper bits.

    Raises:
        ValueError: if an array is not (channels, height, width) with at least one of each.
    """
    values = _channels_first(image)
    channels = values.shape[0]
    plain = channels in (1, 3)
    if stretch or not plain:
        shown = 3 if channels >= 3 else 1
        reference = (values if like is None else _channels_first(like))[:shown]
        values = _stretched(values[:shown], reference.reshape(1, 1, -1) if plain else reference)
    scaled = np.clip(values, 0, 1) * np.float32(255)
    pixels = np.rint(scaled, out=scaled).astype(np.uint8)
    if pixels.shape[0] == 1:
        return Image.fromarray(pixels[0])
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def image_grid(
    rows: Sequence[Sequence[Image.Image]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    footer: str = "",
) -> Image.Image:
    """Return images in rows and columns on white, with titles above the columns and left of the rows, and a footer.

    Columns are as wide as their widest image or title, rows as high as their highest image. Images whose longer side is
    under 128 pixels are enlarged by integer factors; a footer that is too long is wrapped between words.

    Args:
        rows: the images; rows may differ in length.
        column_titles: one per column, or none.
        row_titles: one per row, or none; a title may have several lines.

    Raises:
        ValueError: if there is no image, or a list of titles has the wrong length.
    """
    if not rows or not all(rows):
        raise ValueError("a grid needs at least one row and at least one image in every row")
    num_columns = max(len(row) for row in rows)
    for titles, count, what in ((column_titles, num_columns, "columns"), (row_titles, len(rows), "rows")):
        if titles and len(titles) != count:
            raise ValueError(f"{len(titles)} titles for {count} {what}")
    title_font, footer_font = font(TITLE_SIZE), font(FOOTER_SIZE)
    cells = [[_enlarged(image) for image in row] for row in rows]

    widths = [max(row[i].width for row in cells if i < len(row)) for i in range(num_columns)]
    if column_titles:
        widths = [max(w, _size(t, title_font)[0]) for w, t in zip(widths, column_titles, strict=True)]
    heights = [max(cell.height for cell in row) for row in cells]
    if row_titles:
        heights = [max(h, _size(t, title_font)[1]) for h, t in zip(heights, row_titles, strict=True)]
    left = MARGIN + (max(_size(title, title_font)[0] for title in row_titles) + MARGIN if row_titles else 0)
    top = MARGIN + (max(_size(title, title_font)[1] for title in column_titles) + GAP if column_titles else 0)
    width = left + sum(widths) + GAP * (num_columns - 1) + MARGIN
    bottom = top + sum(heights) + GAP * (len(rows) - 1)
    paragraphs = [wrapped(line, footer_font, width - 2 * MARGIN) for line in footer.splitlines()]
    footer_lines = "\n".join(line for lines in paragraphs for line in lines)
    footer_height = _size(footer_lines, footer_font)[1] + MARGIN if footer_lines else 0

    canvas = Image.new("RGB", (width, bottom + footer_height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    lefts = [left + sum(widths[:i]) + GAP * i for i in range(num_columns)]
    tops = [top + sum(heights[:i]) + GAP * i for i in range(len(rows))]
    for x, column_width, title in zip(lefts, widths, column_titles, strict=False):
        draw.text((x + column_width / 2, top - GAP), title, INK, title_font, anchor="md", align="center")
    for y, height, title in zip(tops, heights, row_titles, strict=False):
        draw.text((left - MARGIN, y + height / 2), title, INK, title_font, anchor="rm", align="right")
    for y, height, row in zip(tops, heights, cells, strict=True):
        for x, column_width, cell in zip(lefts, widths, row, strict=False):
            canvas.paste(cell.convert("RGB"), (x + (column_width - cell.width) // 2, y + (height - cell.height) // 2))
    if footer_lines:
        draw.text((MARGIN, bottom + MARGIN), footer_lines, FOOTER_INK, footer_font)
    return canvas


def film_strip(clip: Any, most: int = STRIP_FRAMES) -> Image.Image:
    """Return frames of a clip side by side, from the first to the last, evenly spread.

    Args:
        clip: (3, T, H, W) array or CPU tensor, uint8, or float in [0, 1].
        most: maximum number of frames.
    """
    frames = np.asarray(clip)
    count = min(most, frames.shape[1])
    largest = 255 if frames.dtype == np.uint8 else 1
    chosen = [round(number * (frames.shape[1] - 1) / max(1, count - 1)) for number in range(count)]
    pictures = [to_pil(frames[:, number].astype(np.float32) / largest) for number in chosen]
    width, height = pictures[0].size
    strip = Image.new("RGB", (count * (width + STRIP_GAP) - STRIP_GAP, height), BACKGROUND)
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * (width + STRIP_GAP), 0))
    return strip


def with_legend(grid: Image.Image, entries: Sequence[tuple[np.ndarray, str]], caption: str = "") -> Image.Image:
    """Return a figure with a legend in columns, and a caption, below it.

    Args:
        entries: swatch (SWATCH, SWATCH, 3) uint8 and text of each; at least one.
    """
    letters = font(FOOTER_SIZE)
    texts = [fitted(text, letters, _WIDEST_NAME) for _, text in entries]
    column = SWATCH + GAP + max(round(letters.getlength(text)) for text in texts) + 2 * MARGIN
    columns = max(1, min(len(entries), (grid.width - MARGIN) // column))
    step, line = SWATCH + GAP, FOOTER_SIZE + 4
    lines = [part for text in caption.splitlines() for part in wrapped(text, letters, grid.width - 2 * MARGIN)]
    legend_height = -(-len(entries) // columns) * step
    canvas = Image.new("RGB", (grid.width, grid.height + legend_height + GAP + len(lines) * line + MARGIN), BACKGROUND)
    canvas.paste(grid, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for place, ((swatch, _), text) in enumerate(zip(entries, texts, strict=True)):
        row, number = divmod(place, columns)
        left, top = MARGIN + number * column, grid.height + row * step
        canvas.paste(Image.fromarray(swatch), (left, top))
        draw.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), outline=INK)
        draw.text((left + SWATCH + GAP, top + SWATCH / 2), text, INK, letters, anchor="lm")
    for number, text in enumerate(lines):
        top = grid.height + legend_height + GAP + number * line
        draw.text((MARGIN, top), text, FOOTER_INK, letters)
    return canvas


def with_heading(image: Image.Image, text: str) -> Image.Image:
    """Return a figure with a line of text above it."""
    letters = font(TITLE_SIZE)
    width, height = _size(text, letters)
    top = MARGIN + height
    canvas = Image.new("RGB", (max(image.width, width + 2 * MARGIN), top + image.height), BACKGROUND)
    canvas.paste(image.convert("RGB"), (0, top))
    ImageDraw.Draw(canvas).text((MARGIN, MARGIN), text, INK, letters)
    return canvas


def _channels_first(image: Any) -> np.ndarray:
    """Return the image as finite float32 (channels, height, width)."""
    values = np.asarray(image, dtype=np.float32)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"an image must be (channels, height, width) with at least one of each, not {values.shape}")
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _stretched(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return channels scaled so that the 2nd to 98th percentile of the reference's channel becomes 0 to 1.

    If these are equal, the smallest and largest value do; a channel with a single value is shown as it is.
    """
    low, high = np.percentile(reference, [2, 98], axis=(1, 2), keepdims=True).astype(np.float32)
    flat = high - low < _FLAT
    low = np.where(flat, reference.min(axis=(1, 2), keepdims=True), low)
    high = np.where(flat, reference.max(axis=(1, 2), keepdims=True), high)
    single = high - low < _FLAT
    low, high = np.where(single, 0, low), np.where(single, 1, high)
    stretched = values - low
    stretched /= high - low
    return stretched


def _enlarged(image: Image.Image) -> Image.Image:
    factor = -(-MIN_CELL // max(image.size))
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _size(text: str, letters: Any) -> tuple[int, int]:
    """Return the width and height of a text of one or more lines, in whole pixels."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    x0, _, x1, y1 = draw.multiline_textbbox((0, 0), text, letters)
    return int(np.ceil(x1 - x0)), int(np.ceil(y1))
