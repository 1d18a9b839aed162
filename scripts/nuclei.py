"""Write a real microscope image with a class for every pixel: DEST/train, DEST/heldout, DEST/classes.txt.

The image of fluorescent nuclei and its 125 outlined nuclei ship inside the package stardist (BSD-3), which needs not
be installed: SOURCE is a directory that contains the unpacked package. The right quarter of the image is held out.
Classes: background, nucleus, and border, the pixels on both sides of an outline, so that touching nuclei stay apart.
Label maps are TIFFs of 16 bits.

    pip install --no-deps --target nuclei-source stardist
    python scripts/nuclei.py nuclei-source nuclei
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tifffile

IMAGE, INSTANCES = "stardist/data/images/img2d.tif", "stardist/data/images/mask2d.tif"
NAMES = ("background", "nucleus", "border")
HELD_OUT_PART = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an image of nuclei with its label map, in two parts.")
    parser.add_argument("source", type=Path, help="directory that contains the package stardist")
    parser.add_argument("dest", type=Path, help="directory for classes.txt and the folders train and heldout")
    arguments = parser.parse_args()
    try:
        image, instances = (tifffile.imread(arguments.source / name) for name in (IMAGE, INSTANCES))
        labels = semantic(instances)
        edge = round(image.shape[1] * (1 - HELD_OUT_PART))
        for part, columns in (("train", slice(None, edge)), ("heldout", slice(edge, None))):
            for folder, pixels in (("images", image), ("labels", labels)):
                path = arguments.dest / part / folder / "nuclei.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, np.ascontiguousarray(pixels[:, columns]))
            print(f"{arguments.dest / part}: {labels[:, columns].shape[1]} x {labels.shape[0]} pixels")
        (arguments.dest / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    except (OSError, ValueError) as error:
        sys.exit(f"nuclei.py: {error}")


def semantic(instances: np.ndarray) -> np.ndarray:
    """Return the class (H, W) uint16 of every pixel, from the number of its nucleus, 0 for none."""
    height, width = instances.shape
    padded = np.pad(instances, 1, mode="edge")
    shifted = [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    border = np.any([neighbor != instances for neighbor in shifted], axis=0)
    return np.where(border, NAMES.index("border"), instances > 0).astype(np.uint16)


if __name__ == "__main__":
    main()
