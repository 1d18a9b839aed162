"""Shards with label maps, and tiny runs of segmentation over them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from swinv2_train.config.overrides import last_of_each
from tests.runs import TINY_MODEL

IGNORE = 255


def make_scene(rng: np.random.Generator, size: tuple[int, int], channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A dark ground with bright (class 1) and reddish (class 2) rectangles, and a border that is ignored.

    Returns:
        (image (H, W, C) uint8, or (H, W) for one channel; label map (H, W) uint8).
    """
    image = rng.integers(0, 60, (*size, channels), dtype=np.uint8)
    labels = np.zeros(size, np.uint8)
    for number in range(4):
        top, left = (int(rng.integers(0, side - 8)) for side in size)
        tall, wide = (int(side) for side in rng.integers(8, 30, 2))
        part = (slice(top, top + tall), slice(left, left + wide))
        labels[part] = 1 + number % 2
        image[part] = image[part] + (120 if number % 2 == 0 else 0)
        image[(*part, 0)] |= 160
    labels[:2] = IGNORE
    return image[..., 0] if channels == 1 else image, labels


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def make_segmented_shard(
    path: Path, count: int, seed: int, channels: int = 3, numbers: tuple[int, ...] = (0, 1, 2)
) -> None:
    """A plain WebDataset tar of scenes of 50 to 80 pixels a side with `seg.png`.

    Args:
        numbers: of the classes in the label maps.
    """
    import webdataset

    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(numbers)] = numbers

    rng = np.random.default_rng(seed)
    with webdataset.TarWriter(str(path)) as writer:
        for index in range(count):
            size = (int(rng.integers(50, 80)), int(rng.integers(50, 80)))
            image, labels = make_scene(rng, size, channels)
            writer.write({"__key__": f"{path.stem}-{index:04d}", "png": png(image), "seg.png": png(table[labels])})


def make_segmented_data(directory: Path, channels: int = 3) -> Path:
    """Two training shards of unequal size and one held-out shard."""
    directory.mkdir(parents=True, exist_ok=True)
    make_segmented_shard(directory / "train-0.tar", 9, 0, channels)
    make_segmented_shard(directory / "train-1.tar", 5, 1, channels)
    make_segmented_shard(directory / "eval-0.tar", 5, 2, channels)
    return directory


TINY_SEGMENTER = [
    "task=segmentation", "task.num_classes=3", *TINY_MODEL[:-1], "data.resolution=[64,32]", "task.channels=16",
    "task.auxiliary_channels=16",
]  # fmt: skip


def tiny_segmentation(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The overrides of a run of 4 steps over the shards of `make_segmented_data`; later overrides win."""
    return last_of_each([
        *TINY_SEGMENTER, f"data.shards={shards}/train-*.tar", f"data.eval_shards={shards}/eval-*.tar",
        f"run.dir={run_dir}", "data.num_workers=0", "engine=zero1_fp32", "model.drop_path=0.2", "task.dropout=0.2",
        "task.dice_weight=0.5", "task.class_weights=[0.5,2,1]", "optim.global_batch=8", "optim.lr_reference_batch=8",
        "optim.steps=4", "optim.warmup_steps=2", "checkpoint.every_steps=2", "eval.every_steps=2",
        "eval.figure_every_steps=4", "eval.figure_samples=2", "tracking.log_every_steps=1",
        "tracking.tensorboard=false", "launch.device=cpu", *overrides,
    ])  # fmt: skip
