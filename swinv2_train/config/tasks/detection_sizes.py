"""Sizes of the images of detection. They keep the ratio of the sides."""

from __future__ import annotations

from collections.abc import Sequence


def fitted(source: Sequence[int], short: int, long: int) -> tuple[int, int]:
    """Return the height and width of an image that is scaled to a short side, or a smaller one if its longest side
    would exceed `long`."""
    return enlarged(source, min(short / min(source), long / max(source)))


def within(source: Sequence[int], canvas: Sequence[int]) -> tuple[int, int]:
    """Return the height and width of an image at the largest size that fits in a canvas of (height, width)."""
    return enlarged(source, min(side / length for side, length in zip(canvas, source, strict=True)))


def enlarged(sides: Sequence[int], factor: float) -> tuple[int, int]:
    """Return two sides times a factor, rounded, at least 1."""
    first, second = (max(1, round(side * factor)) for side in sides)
    return first, second
