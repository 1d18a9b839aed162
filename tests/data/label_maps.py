"""Images with label maps for the tests of packing: small scenes, and files as programs write them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.data.samples import pixels

NAMES = ("sea", "land", "town")


def png(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    """An array as PNG; mode P: as indices of a palette."""
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    if mode == "P":
        picture.putpalette([value for n in range(256) for value in (n * 40 % 256, n * 7 % 256, 128)])
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """An array as TIFF."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "metadata": None, **options})
    return buffer.getvalue()


def labels(seed: int, height: int = 24, width: int = 32, classes: int = len(NAMES)) -> np.ndarray:
    """A label map of vertical stripes and a square, uint8."""
    found = np.repeat(np.arange(width) * classes // width, height).reshape(width, height).T.astype(np.uint8)
    found[4:12, 4 + seed : 12 + seed] = (seed + 1) % classes
    return found


def write_pairs(root: Path, count: int = 6, size: tuple[int, int] = (24, 32)) -> tuple[Path, Path]:
    """Write root/images/a/0.png, ... and root/labels/a/0.png, ...; return both folders."""
    images, maps = root / "images", root / "labels"
    for folder in (images / "a", maps / "a"):
        folder.mkdir(parents=True)
    for seed in range(count):
        (images / "a" / f"{seed}.png").write_bytes(png(pixels(seed, *size)))
        (maps / "a" / f"{seed}.png").write_bytes(png(labels(seed, *size)))
    return images, maps


def names_file(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Write the names of the classes, one per line."""
    path = root / "classes.txt"
    path.write_text("\n".join(names) + "\n")
    return path
