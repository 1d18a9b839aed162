"""Shards of tiny videos, and tiny runs over them: the class of a video is the direction in which its spot moves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from swinv2_train.config.overrides import last_of_each
from swinv2_train.data.video import probe
from tests.data.videos import video
from tests.runs import TINY_MODEL

MOTIONS = ((0, 1), (0, -1), (1, 0))
"""Rows and columns by which the spot of each class moves in a frame."""
SHAPE = (40, 48)


def make_frames(rng: np.random.Generator, label: int, count: int, size: tuple[int, int] = SHAPE) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of a bright spot on a still ground; it reenters at the other side."""
    ground = np.kron(rng.integers(0, 90, (4, 4, 3)), np.ones((-(-size[0] // 4), -(-size[1] // 4), 1)))
    place, (down, right) = rng.integers(0, size), MOTIONS[label]
    frames = []
    for number in range(count):
        frame = ground[: size[0], : size[1]].astype(np.uint8)
        rows, columns = ((first + step * number + np.arange(10)) % side for first, step, side in zip(
            place, (down, right), size, strict=True))  # fmt: skip
        frame[rows[:, None], columns] = 230
        frames.append(frame)
    return frames


def make_filmed_shard(path: Path, count: int, seed: int, broken: tuple[int, ...] = (), *, facts: bool = True) -> None:
    """A plain WebDataset tar of videos of 9 to 20 frames, with `cls`.

    Args:
        broken: samples whose video is cut.
        facts: write `frames.json`, as the packer does.
    """
    import webdataset

    rng = np.random.default_rng(seed)
    with webdataset.TarWriter(str(path)) as writer:
        for index in range(count):
            label = index % len(MOTIONS)
            data = video(make_frames(rng, label, int(rng.integers(9, 21))), options={"preset": "ultrafast"})
            members = {"mp4": data[:300] if index in broken else data, "cls": str(label).encode()}
            if facts:
                members["frames.json"] = json.dumps(probe(data).to_json()).encode()
            writer.write({"__key__": f"{path.stem}-{index:04d}", **members})


def make_filmed_data(directory: Path) -> Path:
    """Two training shards of unequal size, one of them without facts, and one held-out shard."""
    directory.mkdir(parents=True, exist_ok=True)
    make_filmed_shard(directory / "train-0.tar", 9, 0)
    make_filmed_shard(directory / "train-1.tar", 5, 1, facts=False)
    make_filmed_shard(directory / "eval-0.tar", 5, 2)
    return directory


TINY_CLIPS = [
    *TINY_MODEL[:-2], "model.temporal_patch=2", "model.temporal_window=2", "data.resolution=32", "data.frames=8",
    "data.frame_stride=1",
]  # fmt: skip
TINY_VIDEO = ["task=video", "task.num_classes=3", *TINY_CLIPS]


def tiny_clips(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The overrides of a run of 4 steps over the shards of `make_filmed_data`, without a task; later overrides win."""
    return last_of_each([
        *TINY_CLIPS, f"data.shards={shards}/train-*.tar", f"data.eval_shards={shards}/eval-*.tar",
        f"run.dir={run_dir}", "data.num_workers=0", "engine=zero1_fp32", "model.drop_path=0.2", "data.crop_pct=1",
        "optim.global_batch=8", "optim.lr_reference_batch=8", "optim.steps=4", "optim.warmup_steps=1",
        "checkpoint.every_steps=2", "eval.every_steps=2", "eval.figure_every_steps=4", "eval.figure_samples=2",
        "tracking.log_every_steps=1", "tracking.tensorboard=false", "launch.device=cpu", *overrides,
    ])  # fmt: skip


def tiny_video(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """As `tiny_clips`, of video classification with six views."""
    return tiny_clips(shards, run_dir, "task=video", "task.num_classes=3", "task.views=2x3", *overrides)
