"""Write scenes of real handwritten digits on real photographs, with a class for every pixel: DEST/train, DEST/heldout.

For demos and tests of semantic segmentation on a machine without a data set. Each scene is a square from a photograph
with up to three digits of random sizes, places, slants, and colors. Its label map is a PNG with a palette: 0 is the
background, the others are the classes of classes.txt, and 255 is the blurred border of a stroke, which is ignored.

The digits of `train` are those of the folder `train` of digits.py, each in several scenes, those of `heldout` are in
none of its other folders, and their photographs are held out, too (`pip install "swinv2-train[demo]"`).

    python scripts/scenes.py scenes
    swinv2-data pack scenes/train/images shards --labels scenes/train/labels --classes-file scenes/classes.txt \\
        --ignore 255
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from digits import (
    DARKENED,
    DIGITS,
    HELD_OUT_DIGITS,
    QUALITY,
    TRAIN_DIGITS,
    color,
    ground,
    photographs,
    read_digits,
    stroke,
)
from photos import HELD_OUT, TRAIN, command, locate
from PIL import Image

from swinv2_train.tasks.segmentation.colors import IGNORED as IGNORED_COLOR
from swinv2_train.tasks.segmentation.colors import palette

SHOWN = (0, 1)
"""The digits of the scenes; class numbers follow this order, after the background."""
NAMES = ("background", *map(str, SHOWN))
IGNORED = 255
TRAIN_SCENES, HELD_OUT_SCENES = 400, 200
SIDE = 96
DIGITS_PER_SCENE = (1, 3)
DIGIT_SIDES = (36, 60)
STROKE, BLURRED = 0.5, 0.2
"""Opacity at which a pixel is a stroke; between the two it is ignored."""
ATTEMPTS = 50
"""Places that are tried for a digit; if each covers another digit, the scene goes without it."""


def main() -> None:
    contents = "classes.txt and the folders train and heldout"
    command("Write scenes of real digits on photographs, with label maps.", contents, write_folders)


def write_folders(dest: Path) -> Iterator[tuple[str, str]]:
    """Write classes.txt and both folders; see `photos.command`."""
    counts = (TRAIN_SCENES, HELD_OUT_SCENES)
    for seed, ((folder, digits, grounds), count) in enumerate(zip(parts(), counts, strict=True)):
        write(dest / folder, digits, grounds, count, seed=seed)
        yield folder, f"{count} scenes"
    (dest / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))


def parts() -> Iterator[tuple[str, list[np.ndarray], list[Image.Image]]]:
    """Yield the folders train and heldout with their digits (n, 28, 28), by class, and photographs."""
    classes = read_digits(locate(DIGITS))
    for folder, chosen, names in (
        ("train", slice(None, TRAIN_DIGITS), TRAIN),
        ("heldout", slice(-HELD_OUT_DIGITS, None), HELD_OUT),
    ):
        yield folder, [classes[digit][chosen] for digit in SHOWN], photographs(names)


def write(folder: Path, classes: list[np.ndarray], grounds: list[Image.Image], count: int, *, seed: int) -> None:
    """Write `count` scenes of the digits (n, 28, 28) of every class into the folders images and labels."""
    rng = np.random.default_rng(seed)
    dealt = deal(classes, rng)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        digits = [next(dealt) for _ in range(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1))]
        image, labels = scene(digits, grounds[rng.integers(len(grounds))], rng)
        image.save(folder / "images" / f"{number:05d}.jpg", quality=QUALITY)
        labels.save(folder / "labels" / f"{number:05d}.png")


def deal(classes: list[np.ndarray], rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (class number, digit) endlessly in random order; each digit once before any is repeated."""
    pairs = [(number, digit) for number, digits in enumerate(classes, start=1) for digit in digits]
    while True:
        for index in rng.permutation(len(pairs)):
            yield pairs[index]


def scene(
    digits: list[tuple[int, np.ndarray]], photograph: Image.Image, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Return a random square of a photograph with digits, each (class number, (28, 28)), and its label map."""
    image, drawn = placed(digits, photograph, rng)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for number, opacity in drawn:
        labels[opacity > BLURRED] = IGNORED
        labels[opacity >= STROKE] = number
    return image, with_palette(labels)


def placed(
    digits: list[tuple[int, np.ndarray]], photograph: Image.Image, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, np.ndarray]]]:
    """Return a random square of a photograph with digits, each (class number, (28, 28)), that do not meet.

    Also return the digits that found a place: class number, and opacity (SIDE, SIDE).
    """
    image = np.asarray(ground(photograph, rng, SIDE)) * rng.uniform(*DARKENED)
    found: list[tuple[int, np.ndarray]] = []
    taken = np.zeros((SIDE, SIDE), bool)
    for number, digit in digits:
        side = int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
        drawn = stroke(digit, side, rng)
        place = free_place(taken, drawn > 0, rng)
        if place is None:
            continue
        patch = drawn[..., None]
        image[place] = (1 - patch) * image[place] + patch * color(rng)
        opacity = np.zeros((SIDE, SIDE), np.float32)
        opacity[place] = drawn
        found.append((number, opacity))
        taken[place] |= drawn > 0
    return Image.fromarray(image.round().astype(np.uint8)), found


def free_place(taken: np.ndarray, needed: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Return rows and columns for `needed` (side, side) that meet nothing of `taken`; None if none was found."""
    side = len(needed)
    for _ in range(ATTEMPTS):
        top, left = (int(start) for start in rng.integers(0, SIDE - side + 1, 2))
        place = slice(top, top + side), slice(left, left + side)
        if not (taken[place] & needed).any():
            return place
    return None


def with_palette(labels: np.ndarray) -> Image.Image:
    """Return class numbers (H, W) as an image of these numbers that shows them in the colors of the figures."""
    colors = palette(256).copy()
    colors[IGNORED] = IGNORED_COLOR
    image = Image.fromarray(labels)
    image.putpalette(colors.tobytes())
    return image


if __name__ == "__main__":
    main()
