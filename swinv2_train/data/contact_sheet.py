"""Contact sheet: randomly chosen samples of a set of shards in one image, with their label maps drawn over them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from swinv2_train.data.decode import DecodeOptions, opaque, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import Crop, resize
from swinv2_train.data.image_files import picture_format
from swinv2_train.data.label_image import decode_label_map
from swinv2_train.data.samples import IMAGE
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.unit_values import missing_of
from swinv2_train.data.value_range import Nodata
from swinv2_train.lettering import fitted, font
from swinv2_train.writing import write_bytes

_TILE = 160
_CAPTION = 28
_TEXT = 11
_COLUMNS = 8
_LEGEND_ROW = 20
_LEGEND_COLUMN = 168
_MOST_IN_LEGEND = 40
_OPACITY = 0.55  # of the colors of classes over the image


@dataclass
class Overlay:
    """Label maps to draw over the images, and the classes that were drawn."""

    member: str
    ignore: int
    """Value of pixels without a class."""
    paint: Callable[[np.ndarray], np.ndarray]
    """(H, W) class numbers -> (H, W, 3) uint8 colors."""
    names: Sequence[str] | None = None
    """Names of the classes; None: their numbers."""
    drawn: set[int] = field(default_factory=set)

    def over(self, picture: Image.Image, data: bytes, max_pixels: int) -> Image.Image:
        """Return a picture with its label map over it. Raises BrokenSample if that cannot be read."""
        labels = decode_label_map(data, max_pixels)
        size = (picture.height, picture.width)
        source = (int(labels.shape[0]), int(labels.shape[1]))
        small = Crop(source, (0, 0, *source), size, size).label_map(labels).numpy()
        self.drawn.update(np.unique(small).tolist())
        return Image.blend(picture, Image.fromarray(self.paint(small)), _OPACITY)

    def legend(self, width: int) -> Image.Image:
        """Return the names and colors of the classes that were drawn, on lines of a width in pixels."""
        numbers = sorted(self.drawn)
        entries = [(number, self._name(number)) for number in numbers[:_MOST_IN_LEGEND]]
        more = len(numbers) - len(entries)
        columns = max(1, width // _LEGEND_COLUMN)
        rows = -(-(len(entries) + bool(more)) // columns)
        strip = Image.new("RGB", (width, rows * _LEGEND_ROW + 8), "white")
        draw, letters = ImageDraw.Draw(strip), font(_TEXT)
        for place, (number, name) in enumerate(entries):
            left, top = 8 + place % columns * _LEGEND_COLUMN, 4 + place // columns * _LEGEND_ROW
            color = tuple(self.paint(np.array([[number]], np.uint16))[0, 0].tolist())
            draw.rectangle((left, top, left + 12, top + 12), color, outline="gray")
            draw.text((left + 18, top), fitted(name, letters, _LEGEND_COLUMN - 26), "black", letters)
        if more:
            left, top = 8 + len(entries) % columns * _LEGEND_COLUMN, 4 + len(entries) // columns * _LEGEND_ROW
            draw.text((left, top), f"and {more} more", "gray", letters)
        return strip

    def _name(self, number: int) -> str:
        if number == self.ignore:
            return f"no class ({number})"
        return self.names[number] if self.names and number < len(self.names) else f"class {number}"


def contact_sheet(
    shards: ShardSet,
    path: Path,
    *,
    num_samples: int,
    seed: int = 0,
    options: DecodeOptions | None = None,
    nodata: Nodata = None,
    overlay: Overlay | None = None,
) -> int:
    """Draw randomly chosen samples, with key and size, into one image; return the number of available samples.

    With an `overlay`, label maps are drawn over the images, and below them the legend of their classes.

    Of images with more than three channels the first three are shown; images with more than 8 bits are stretched to
    their own range.

    Raises:
        DataError: if the file's suffix is not that of an image format.
        OSError: if the file cannot be written.
    """
    options = options or DecodeOptions()
    chosen = np.random.default_rng(seed).permutation(shards.num_samples)[:num_samples]
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (_TILE + 8) + 8, rows * (_TILE + _CAPTION + 8) + 8), "white")
    draw, letters = ImageDraw.Draw(sheet), font(_TEXT)
    for place, index in enumerate(sorted(int(index) for index in chosen)):
        left, top = 8 + place % columns * (_TILE + 8), 8 + place // columns * (_TILE + _CAPTION + 8)
        try:
            raw = shards.read(index, (IMAGE,) if overlay is None else (IMAGE, overlay.member))
            pixels = read_pixels(raw.data, options.max_pixels)
            image = opaque(pixels, None, options.background)
            tile = _tile(image, missing_of(pixels, image.numpy(), nodata))
            if overlay is not None:
                tile = overlay.over(tile, raw.member(overlay.member), options.max_pixels)
            sheet.paste(tile, (left + (_TILE - tile.width) // 2, top + (_TILE - tile.height) // 2))
            bits = f", {pixels.stored}" if pixels.stored else ", 16 bit" if image.dtype == torch.uint16 else ""
            text = f"{image.shape[2]} x {image.shape[1]} x {image.shape[0]}{bits}"
        except BrokenSample as error:
            draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), outline="red")
            text = f"broken: {error.reason}"
        draw.text((left, top + _TILE + 1), fitted(shards.key(index), letters, _TILE, keep_end=True), "black", letters)
        draw.text((left, top + _TILE + 14), fitted(text, letters, _TILE), "gray", letters)
    if overlay is not None:
        sheet = _stacked(sheet, overlay.legend(sheet.width))
    stream = io.BytesIO()
    sheet.save(stream, picture_format(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue())
    return len(chosen)


def _stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    both = Image.new("RGB", (upper.width, upper.height + lower.height), "white")
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both


def _stretched(image: Tensor, missing: Tensor) -> Tensor:
    """Stretch stored values to 8 bits; pixels without data become 0.

    Args:
        missing: bool, of the same shape as the image.
    """
    values = image.to(torch.float64)
    present = values[~missing]
    low, high = (present.min(), present.max()) if present.numel() else (values.new_zeros(()), values.new_ones(()))
    extent = (high - low).clamp_min(1.0 if image.dtype == torch.uint16 else torch.finfo(torch.float32).tiny)
    stretched = ((values - low) / extent * 255).round()
    return stretched.masked_fill(missing, 0).clamp(0, 255).to(torch.uint8)


def _tile(image: Tensor, missing: np.ndarray) -> Image.Image:
    """Return a PIL image that fits into a tile.

    Args:
        missing: (C, H, W) bool: True for pixels without data, which are shown black.
    """
    image = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    if image.dtype != torch.uint8:
        shown = missing[:3] if len(missing) >= 3 else missing[:1]
        image = _stretched(image, torch.from_numpy(shown).expand(image.shape))
    height, width = image.shape[1:]
    scale = _TILE / max(height, width)
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))), "bilinear")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
