"""Contact sheet: randomly chosen samples of a set of shards in one image, with their annotations drawn over them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from swinv2_train.data.decode import DecodeOptions, opaque, read_pixels
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import resize
from swinv2_train.data.image_files import picture_format
from swinv2_train.data.overlays import ObjectOverlay, Overlay
from swinv2_train.data.samples import IMAGE
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.unit_values import missing_of
from swinv2_train.data.value_range import Nodata
from swinv2_train.lettering import fitted, font
from swinv2_train.writing import write_bytes

_TILE = 160
_LARGE_TILE = 320
"""Side of the images with objects, whose boxes have names."""
_CAPTION = 28
_TEXT = 11
_WIDTH = 8 * (_TILE + 8)
"""Width of a full sheet in pixels, without its margin."""


def contact_sheet(
    shards: ShardSet,
    path: Path,
    *,
    num_samples: int,
    seed: int = 0,
    options: DecodeOptions | None = None,
    nodata: Nodata = None,
    overlays: Sequence[Overlay] = (),
) -> int:
    """Draw randomly chosen samples, with key and size, into one image; return the number of available samples.

    Label maps and objects are drawn over the images by their `overlays`, and below all images the legends of classes.

    Of images with more than three channels the first three are shown; images with more than 8 bits are stretched to
    their own range.

    Raises:
        DataError: if the file's suffix is not that of an image format.
        OSError: if the file cannot be written.
    """
    options = options or DecodeOptions()
    chosen = np.random.default_rng(seed).permutation(shards.num_samples)[:num_samples]
    side = _LARGE_TILE if any(isinstance(overlay, ObjectOverlay) for overlay in overlays) else _TILE
    columns = min(_WIDTH // (side + 8), len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + _CAPTION + 8) + 8), "white")
    draw, letters = ImageDraw.Draw(sheet), font(_TEXT)
    for place, index in enumerate(sorted(int(index) for index in chosen)):
        left, top = 8 + place % columns * (side + 8), 8 + place // columns * (side + _CAPTION + 8)
        try:
            raw = shards.read(index, (IMAGE, *(overlay.member for overlay in overlays)))
            pixels = read_pixels(raw.data, options.max_pixels)
            image = opaque(pixels, None, options.background)
            tile = _tile(image, missing_of(pixels, image.numpy(), nodata), side)
            for overlay in overlays:
                tile = overlay.over(tile, raw.member(overlay.member), options.max_pixels)
            sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
            bits = f", {pixels.stored}" if pixels.stored else ", 16 bit" if image.dtype == torch.uint16 else ""
            text = f"{image.shape[2]} x {image.shape[1]} x {image.shape[0]}{bits}"
        except BrokenSample as error:
            draw.rectangle((left, top, left + side - 1, top + side - 1), outline="red")
            text = f"broken: {error.reason}"
        draw.text((left, top + side + 1), fitted(shards.key(index), letters, side, keep_end=True), "black", letters)
        draw.text((left, top + side + 14), fitted(text, letters, side), "gray", letters)
    for overlay in overlays:
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


def _tile(image: Tensor, missing: np.ndarray, side: int) -> Image.Image:
    """Return a PIL image that fits into a square of `side` pixels.

    Args:
        missing: (C, H, W) bool: True for pixels without data, which are shown black.
    """
    image = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    if image.dtype != torch.uint8:
        shown = missing[:3] if len(missing) >= 3 else missing[:1]
        image = _stretched(image, torch.from_numpy(shown).expand(image.shape))
    height, width = image.shape[1:]
    scale = side / max(height, width)
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))), "bilinear")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
