"""Film strips: some frames of each of several videos in one image."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.geometry import resize
from swinv2_train.data.image_files import picture_format
from swinv2_train.data.labels import known_labels
from swinv2_train.data.samples import TEXT_EXTENSIONS, VIDEO
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.video import MAX_PIXELS, probe, read_frames
from swinv2_train.data.video_facts import VideoFacts
from swinv2_train.data.video_statistics import spread
from swinv2_train.lettering import fitted, font
from swinv2_train.writing import write_bytes

FRAMES = 8
"""Frames of a strip."""
_SIDE = 160
"""Longer side of a frame on a strip."""
_GAP = 2
_CAPTION = 16
_MARGIN = 8
_TEXT = 11
_WIDTH = FRAMES * (_SIDE + _GAP) - _GAP


def film_strip(clip: Tensor) -> Image.Image:
    """Return the frames of a clip side by side, in their own size.

    Args:
        clip: (3, N, H, W) uint8.
    """
    _, count, height, width = clip.shape
    strip = Image.new("RGB", (count * (width + _GAP) - _GAP, height), "white")
    for number in range(count):
        frame = Image.fromarray(clip[:, number].permute(1, 2, 0).contiguous().numpy())
        strip.paste(frame, (number * (width + _GAP), 0))
    return strip


def film_sheet(shards: ShardSet, path: Path, *, num_samples: int, seed: int = 0, max_pixels: int = MAX_PIXELS) -> int:
    """Draw strips of randomly chosen videos of a set, with key, class, rate, duration, and size, into one image.

    Returns:
        The number of strips.

    Raises:
        DataError: if the file's suffix is not that of an image format.
        OSError: if the file cannot be written.
    """
    chosen = np.random.default_rng(seed).permutation(shards.num_samples)[:num_samples]
    names, letters = (shards.card.class_names if shards.card is not None else None), font(_TEXT)
    drawn: list[tuple[Image.Image, str, str]] = []
    for index in sorted(int(index) for index in chosen):
        try:
            strip, text = _drawn(shards, index, names, max_pixels)
        except BrokenSample as error:
            strip, text = Image.new("RGB", (_WIDTH, _CAPTION), "mistyrose"), f"broken: {error.reason}"
        drawn.append((strip, shards.key(index), text))
    height = sum(strip.height + _CAPTION + _MARGIN for strip, _, _ in drawn) + _MARGIN
    sheet = Image.new("RGB", (_WIDTH + 2 * _MARGIN, height), "white")
    draw, top = ImageDraw.Draw(sheet), _MARGIN
    for strip, key, text in drawn:
        shown = fitted(text, letters, _WIDTH * 2 / 3)
        room = _WIDTH - letters.getlength(shown) - 2 * _MARGIN
        draw.text((_MARGIN, top), fitted(key, letters, room, keep_end=True), "black", letters)
        draw.text((_MARGIN + _WIDTH - letters.getlength(shown), top), shown, "gray", letters)
        sheet.paste(strip, (_MARGIN, top + _CAPTION))
        top += strip.height + _CAPTION + _MARGIN
    stream = io.BytesIO()
    sheet.save(stream, picture_format(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue())
    return len(drawn)


def _drawn(shards: ShardSet, index: int, names: Sequence[str] | None, max_pixels: int) -> tuple[Image.Image, str]:
    """Return the strip of a video and its caption. Raises BrokenSample."""
    raw = shards.read(index, (VIDEO, *TEXT_EXTENSIONS))
    facts = probe(raw.data, max_pixels)
    change = functools.partial(_fitting, facts)
    clip = read_frames(raw.data, facts, spread(facts.frames, FRAMES), max_pixels, change)
    numbers, problem = known_labels(raw)
    classes = ", ".join(names[k] if names and k < len(names) else f"class {k}" for k in numbers or ())
    label = classes or (f"no label ({problem})" if problem else "")
    times = f"{facts.fps:.3g} frames/s, {facts.seconds:.1f} s, {facts.frames:,} frames"
    kind = f"{facts.width} x {facts.height}, {facts.codec}"
    return film_strip(clip), ", ".join(part for part in (label, times, kind) if part)


def _fitting(facts: VideoFacts, frame: Tensor) -> Tensor:
    """Return a frame (3, H, W) uint8 with a longer side of `_SIDE` pixels."""
    scale = _SIDE / max(facts.size)
    height, width = (max(1, round(side * scale)) for side in facts.size)
    return resize(frame, (height, width), "bilinear")
