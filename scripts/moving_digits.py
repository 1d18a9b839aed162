"""Write videos of real handwritten digits that move over real photographs, by motion: DEST/train, DEST/heldout.

For demos and tests of video on a machine without a data set. The class of a video is the direction in which its digit
moves, or still. A digit that leaves on one side comes back on the opposite one, from a start anywhere, so its place is
equally likely everywhere at any time: a single frame tells nothing about the class. Digit, size, slant, color, speed,
and photograph are random.

The files are H.264 in MP4, with a frame rate of 25. No digit and no photograph is in both folders
(`pip install "swinv2-train[demo]"`).

    python scripts/moving_digits.py motions
    swinv2-data pack motions/train shards --video --classes
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from digits import DARKENED, DIGITS, HELD_OUT_DIGITS, TRAIN_DIGITS, color, ground, photographs, read_digits, stroke
from photos import HELD_OUT, TRAIN, command, locate
from PIL import Image

from swinv2_train.data.video_writing import REPEATABLE

MOTIONS = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "still": (0, 0), "up": (-1, 0)}
"""Change of row and column by class."""
TRAIN_VIDEOS, HELD_OUT_VIDEOS = 240, 40
"""Videos of every class."""
FRAMES, RATE = 24, 25
SIDE = 64
DIGIT_SIDES = (28, 40)
SPEED = (1.5, 3.0)
"""Pixels per frame."""


def main() -> None:
    command("Write videos of moving digits, in folders by motion.", "the folders train and heldout", write_folders)


def write_folders(dest: Path) -> Iterator[tuple[str, str]]:
    """Write both folders; see `photos.command`."""
    classes = read_digits(locate(DIGITS))
    parts = {
        "train": (slice(None, TRAIN_DIGITS), TRAIN, TRAIN_VIDEOS),
        "heldout": (slice(-HELD_OUT_DIGITS, None), HELD_OUT, HELD_OUT_VIDEOS),
    }
    for seed, (folder, (chosen, names, count)) in enumerate(parts.items()):
        digits = np.concatenate([group[chosen] for group in classes])
        yield folder, f"{write(dest / folder, digits, photographs(names), count, seed=seed)} videos"


def write(folder: Path, digits: np.ndarray, grounds: list[Image.Image], count: int, *, seed: int) -> int:
    """Write `count` videos of every motion of digits (n, 28, 28); return the number of files."""
    rng = np.random.default_rng(seed)
    for motion, direction in MOTIONS.items():
        target = folder / motion
        target.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            digit = digits[rng.integers(len(digits))]
            encode(moving(digit, direction, grounds, rng), target / f"{number:05d}.mp4")
    return count * len(MOTIONS)


def moving(
    digit: np.ndarray, direction: tuple[int, int], grounds: list[Image.Image], rng: np.random.Generator
) -> np.ndarray:
    """Return the frames (FRAMES, SIDE, SIDE, 3) uint8 of a digit (28, 28) that moves in a direction."""
    still = np.asarray(ground(grounds[rng.integers(len(grounds))], rng, SIDE)) * rng.uniform(*DARKENED)
    side = int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
    opacity = np.zeros((SIDE, SIDE), np.float32)
    opacity[:side, :side] = stroke(digit, side, rng)
    shade, start, speed = color(rng), rng.uniform(0, SIDE, 2), rng.uniform(*SPEED)
    frames = []
    for number in range(FRAMES):
        place = np.rint(start + number * speed * np.array(direction)).astype(int)
        drawn = np.roll(opacity, tuple(place), axis=(0, 1))[..., None]
        frames.append(((1 - drawn) * still + drawn * shade).round().astype(np.uint8))
    return np.stack(frames)


def encode(frames: np.ndarray, path: Path) -> None:
    """Write frames (N, H, W, 3) uint8 as H.264 in MP4; the same frames give the same bytes."""
    options = {"crf": "18", "preset": "fast", "threads": "1", "x264-params": REPEATABLE}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
