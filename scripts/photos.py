"""Write a folder of real photographs, cut from installed packages: DEST/train and DEST/heldout.

For demos and tests on a machine without a data set. The photographs ship inside the wheels of scikit-image and
scikit-learn (`pip install "swinv2-train[demo]"`; each package has its license notes); nothing is downloaded. Each is
cut into overlapping squares of several sizes; those above 256 pixels are shrunk to 256. The held-out squares come from
photographs that training never sees, so that a falling held-out loss is meaningful.

    python scripts/photos.py photos
    swinv2-data pack photos/train shards --split train
    swinv2-data pack photos/heldout shards --split heldout
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

SKIMAGE, SKLEARN = "skimage/data", "sklearn/datasets/images"
TRAIN = (
    f"{SKIMAGE}/astronaut.png",
    f"{SKIMAGE}/brick.png",
    f"{SKIMAGE}/camera.png",
    f"{SKIMAGE}/chelsea.png",
    f"{SKIMAGE}/grass.png",
    f"{SKIMAGE}/gravel.png",
    f"{SKIMAGE}/hubble_deep_field.jpg",
    f"{SKIMAGE}/ihc.png",
    f"{SKIMAGE}/moon.png",
    f"{SKIMAGE}/motorcycle_left.png",
    f"{SKIMAGE}/retina.jpg",
    f"{SKIMAGE}/rocket.jpg",
    f"{SKLEARN}/flower.jpg",
)
HELD_OUT = (f"{SKIMAGE}/coffee.png", f"{SKIMAGE}/coins.png", f"{SKLEARN}/china.jpg")
SIDES = (160, 192, 224, 256, 320, 384)
LARGEST_TILE = 256
TRAIN_TILES, HELD_OUT_TILES = 30, 12  # per photograph and side, about
QUALITY = 92


def main() -> None:
    command("Write real photographs from installed packages, cut into squares.", "the folders train and heldout", write)


def command(description: str, contents: str, write: Callable[[Path], Iterator[tuple[str, str]]]) -> None:
    """Run a script whose argument is the directory that it writes to, and print what it wrote.

    Args:
        contents: of that directory, for the help.
        write: writes into that directory, and yields the name of each folder with its contents.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("dest", type=Path, help=f"directory for {contents}")
    dest = parser.parse_args().dest
    try:
        for folder, written in write(dest):
            print(f"{dest / folder}: {written}")
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


def write(dest: Path) -> Iterator[tuple[str, str]]:
    """Write both folders."""
    for folder, photographs, count in (("train", TRAIN, TRAIN_TILES), ("heldout", HELD_OUT, HELD_OUT_TILES)):
        written = sum(write_tiles(locate(name), dest / folder, count) for name in photographs)
        yield folder, f"{written} images from {len(photographs)} photographs"


def locate(name: str) -> Path:
    """Return the path of a file in an installed package."""
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f'photos.py: the package {package} is missing: pip install "swinv2-train[demo]"')
    return Path(spec.origin).parent / rest


def write_tiles(photograph: Path, folder: Path, count: int) -> int:
    """Cut one photograph; return the number of files."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.open(photograph)
    image = image.convert("L" if image.mode == "L" else "RGB")
    written = 0
    for side in SIDES:
        for left, top in grid(image.width - side, image.height - side, count):
            tile = image.crop((left, top, left + side, top + side))
            if side > LARGEST_TILE:
                tile = tile.resize((LARGEST_TILE, LARGEST_TILE), Image.Resampling.LANCZOS)
            tile.save(folder / f"{photograph.stem}-{side}-{left:04d}-{top:04d}.jpg", quality=QUALITY)
            written += 1
    return written


def grid(width: int, height: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield about `count` evenly spaced positions in 0..width, 0..height; none if either is negative."""
    if width < 0 or height < 0:
        return
    columns = max(1, round(math.sqrt(count * (width + 1) / (height + 1))))
    rows = max(1, round(count / columns))
    for row in range(min(rows, height + 1)):
        for column in range(min(columns, width + 1)):
            yield column * width // max(1, columns - 1), row * height // max(1, rows - 1)


if __name__ == "__main__":
    main()
