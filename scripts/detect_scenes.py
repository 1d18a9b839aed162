"""Write scenes of real handwritten digits on real photographs, with boxes and masks: DEST/train, DEST/heldout.

For demos and tests of detection on a machine without a data set. Like those of scenes.py, each scene is a square from a
photograph with up to three digits, here of all ten classes; one scene of eight has none. Each folder has `images` and
`objects.json`, annotations as COCO has them. A mask is the stroke, and a box that of its mask, exact to the pixel.

No digit and no photograph is in both folders (`pip install "swinv2-train[demo]"`).

    python scripts/detect_scenes.py objects
    swinv2-data pack objects/train/images shards --coco objects/train/objects.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from digits import DIGITS, HELD_OUT_DIGITS, QUALITY, TRAIN_DIGITS, photographs, read_digits
from photos import HELD_OUT, TRAIN, locate
from PIL import Image
from scenes import DIGITS_PER_SCENE, STROKE, deal, placed

from swinv2_train.data.object_masks import encoded

TRAIN_SCENES, HELD_OUT_SCENES = 200, 200
WITHOUT_DIGITS = 8
"""One scene of this number has no digits."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scenes of real digits on photographs, with boxes and masks.")
    parser.add_argument("dest", type=Path, help="directory for the folders train and heldout")
    dest = parser.parse_args().dest
    try:
        classes = read_digits(locate(DIGITS))
        parts = {
            "train": (slice(None, TRAIN_DIGITS), TRAIN, TRAIN_SCENES),
            "heldout": (slice(-HELD_OUT_DIGITS, None), HELD_OUT, HELD_OUT_SCENES),
        }
        for seed, (part, (chosen, names, count)) in enumerate(parts.items()):
            digits = [digits[chosen] for digits in classes]
            objects = write(dest / part, digits, photographs(names), count, seed=seed)
            print(f"{dest / part}: {count} scenes with {objects} digits")
    except (OSError, ValueError) as error:
        sys.exit(f"detect_scenes.py: {error}")


def write(folder: Path, classes: list[np.ndarray], grounds: list[Image.Image], count: int, *, seed: int) -> int:
    """Write `count` scenes of the digits (n, 28, 28) of every class, and objects.json; return the number of digits."""
    rng = np.random.default_rng(seed)
    dealt = deal(classes, rng)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        wanted = int(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1)) if number % WITHOUT_DIGITS else 0
        digits = [next(dealt) for _ in range(wanted)]
        image, drawn = placed(digits, grounds[rng.integers(len(grounds))], rng)
        name = f"{number:05d}.jpg"
        image.save(folder / "images" / name, quality=QUALITY)
        images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        annotations += [
            {"id": len(annotations) + place, "image_id": number, **annotation(category, opacity)}
            for place, (category, opacity) in enumerate(drawn, start=1)
        ]
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(len(classes))]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "objects.json").write_text(json.dumps(content))
    return len(annotations)


def annotation(category: int, opacity: np.ndarray) -> dict[str, Any]:
    """Return the annotation of a digit with an opacity (H, W), without its ids."""
    mask = opacity >= STROKE
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    code = encoded(mask.astype(np.uint8))
    return {"category_id": category, "bbox": box, "area": int(mask.sum()), "iscrowd": 0, "segmentation": code}


if __name__ == "__main__":
    main()
