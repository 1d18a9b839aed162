"""Write scenes of real handwritten digits on real photographs, with boxes and masks: DEST/train, DEST/heldout.

For demos and tests of detection on a machine without a data set. The scenes are made like those of scenes.py: up to
three zeros and ones on a square from a photograph; one of eight has none. Each folder has `images` and
`objects.json`, annotations as COCO has them. A mask is the stroke, and a box that of its mask, exact to the pixel.

No digit and no photograph is in both folders (`pip install "swinv2-train[demo]"`).

    python scripts/detect_scenes.py objects
    swinv2-data pack objects/train/images shards --coco objects/train/objects.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from digits import QUALITY
from photos import command
from PIL import Image
from scenes import DIGITS_PER_SCENE, SHOWN, STROKE, deal, parts, placed

from swinv2_train.data.object_masks import encoded

TRAIN_SCENES, HELD_OUT_SCENES = 600, 200
WITHOUT_DIGITS = 8
"""One scene of this number has no digits."""


def main() -> None:
    contents = "the folders train and heldout"
    command("Write scenes of real digits on photographs, with boxes and masks.", contents, write_folders)


def write_folders(dest: Path) -> Iterator[tuple[str, str]]:
    """Write both folders; see `photos.command`."""
    counts = (TRAIN_SCENES, HELD_OUT_SCENES)
    for seed, ((folder, digits, grounds), count) in enumerate(zip(parts(), counts, strict=True)):
        objects = write(dest / folder, digits, grounds, count, seed=seed)
        yield folder, f"{count} scenes with {objects} digits"


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
    categories = [{"id": number, "name": str(digit)} for number, digit in enumerate(SHOWN, start=1)]
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
