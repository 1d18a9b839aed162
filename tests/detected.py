"""Shards with objects, and tiny runs of detection over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from swinv2_train.config.overrides import last_of_each
from swinv2_train.data.label_pairs import LabelMaps
from swinv2_train.data.label_rules import LabelRules
from swinv2_train.data.pack import PackOptions
from tests.data.annotated import packed
from tests.runs import TINY_MODEL

CATEGORIES = [{"id": 7, "name": "brick"}, {"id": 2, "name": "tile"}, {"id": 90, "name": "kite"}]
"""Ids with gaps, out of order: tile is 0, brick 1, kite 2. No scene has a kite."""
NAMES = ["tile", "brick", "kite"]
ROWS = {2: 0, 7: 1, 90: 2}
"""Class number of each category id."""
SEMANTIC = LabelRules(("ground", "tile", "brick"), ignore=255)
"""Classes of the label maps."""


def make_scene(rng: np.random.Generator, size: tuple[int, int], count: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A dark ground with bright rectangles (tiles) and reddish triangles (bricks).

    Returns:
        (image (H, W, 3) uint8; annotations without ids).
    """
    picture = Image.fromarray(rng.integers(0, 60, (*size, 3), dtype=np.uint8))
    draw, annotations = ImageDraw.Draw(picture), []
    for number in range(count):
        tall, wide = (int(side) for side in rng.integers(12, 36, 2))
        top, left = (int(rng.integers(0, side - part)) for side, part in zip(size, (tall, wide), strict=True))
        right, bottom = left + wide, top + tall
        corners = [left, top, right, top, right, bottom, left, bottom]
        polygon, category = (corners, 2) if number % 2 == 0 else ([left, top, right, bottom, left, bottom], 7)
        draw.polygon(polygon, fill=(190, 190, 190) if category == 2 else (200, 40, 30))
        area = wide * tall / (1 if category == 2 else 2)
        annotations.append({
            "bbox": [left, top, wide, tall], "category_id": category, "area": area, "iscrowd": 0,
            "segmentation": [[float(value) for value in polygon]],
        })  # fmt: skip
    return np.asarray(picture), annotations


def write_scenes(folder: Path, count: int, seed: int, *, masks: bool = True, most: int = 4) -> tuple[Path, Path]:
    """PNG images of 50 to 80 pixels a side and their annotations; every fourth has no object, every third of the
    others a crowd region. `folder/maps` gets their label maps: ground, tile, and brick, with a border that is ignored.

    Returns:
        (folder of the images, annotations).
    """
    rng = np.random.default_rng(seed)
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        size = (int(rng.integers(50, 80)), int(rng.integers(50, 80)))
        pixels, found = make_scene(rng, size, 0 if number % 4 == 3 else int(rng.integers(1, most + 1)))
        Image.fromarray(pixels).save(folder / "images" / f"{number:03d}.png")
        labels = (pixels[..., 0] > 100).astype(np.uint8) + ((pixels[..., 0] > 100) & (pixels[..., 1] < 100))
        labels[:2] = 255
        Image.fromarray(labels).save(folder / "maps" / f"{number:03d}.png")
        identifier = 1000 * seed + 7 * number + 3
        images.append({"id": identifier, "file_name": f"{number:03d}.png", "height": size[0], "width": size[1]})
        if found and number % 3 == 1:
            found.append({"bbox": [2, 2, 20, 15], "category_id": 7, "area": 300, "iscrowd": 1, "segmentation": {
                "size": list(size), "counts": [size[0] * size[1] - 300, 300],
            }})  # fmt: skip
        for one in found:
            more = {} if masks else {"segmentation": []}
            annotations.append(one | more | {"id": len(annotations) + 1, "image_id": identifier})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    place = folder / "annotations.json"
    place.write_text(json.dumps(content))
    return folder / "images", place


def make_detected_data(directory: Path, *, masks: bool = True) -> Path:
    """Three training shards with label maps and one held-out shard without, each packed with its dataset card."""
    for name, count, seed, shard in (("train", 14, 0, 6), ("eval", 6, 2, 6)):
        images, annotations = write_scenes(directory / f"{name}-source", count, seed, masks=masks)
        maps = LabelMaps(str(images.with_name("maps")), SEMANTIC) if name == "train" else None
        packed(images, annotations, directory / name, PackOptions(max_count=shard), labels=maps)
    return directory


TINY_DETECTOR = [
    "task=detection", *TINY_MODEL[:-1], "data.resolution=[64,48]", "task.channels=8", "task.box_hidden=16",
    "task.mask_channels=8", "task.roi_samples=16", "task.rpn_samples=32", "task.proposals=40",
    "task.test_proposals=40", "task.anchor_scale=4", "task.outside_anchors=true", "task.score_threshold=0",
    "task.max_detections=10", "task.scale=[0.5,1.5]",
]  # fmt: skip


HTC = (
    "task.detector=htc", "task.class_agnostic=true", "task.global_attention=true", "task.semantic_classes=3",
    "task.copy_paste=0.5",
    "task.scaling=short", "task.short_sides=[56,64]", "task.long_side=80", "task.crop_sides=[24,48]",
    "task.crop_short_sides=[32,48]", "model.attention=sequential", "model.checkpointing=1",
)  # fmt: skip
"""Everything that has randomness, canvases of several sizes, and what saves memory."""


_NARROW = "model.window=[[4,2],[2,4],[4,2],[2,2]]"
DETECTORS = {
    "htc": HTC,
    "boxes": ("task.masks=false", _NARROW),
    "mask_rcnn": ("task.detector=mask_rcnn", "task.box_head=2fc", _NARROW),
}
"""Settings of every detector. Neither the canvas nor the narrow windows are square."""


def tiny_detection(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The overrides of a run of 4 steps over the shards of `make_detected_data`; later overrides win."""
    return last_of_each([
        *TINY_DETECTOR, f"data.shards={shards}/train/*.tar", f"data.eval_shards={shards}/eval/*.tar",
        f"run.dir={run_dir}", "data.num_workers=0", "engine=zero1_fp32", "model.drop_path=0.2",
        "optim.global_batch=4", "optim.lr_reference_batch=4", "optim.steps=4", "optim.warmup_steps=2",
        "checkpoint.every_steps=2", "eval.every_steps=2", "eval.figure_every_steps=4", "eval.figure_samples=2",
        "tracking.log_every_steps=1", "tracking.tensorboard=false", "launch.device=cpu", *overrides,
    ])  # fmt: skip
