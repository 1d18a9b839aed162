"""Peak memory of `swinv2-predict` on a large synthetic scene: a GeoTIFF of 4 channels of 16 bits, in tiles.

The scene is written tile by tile; the model has random weights. The command runs in its own process, whose peak of
resident memory is printed, next to that of importing torch alone.

    python scripts/bench/predict_scene.py --height 6000 --width 8000
    python scripts/bench/predict_scene.py --height 800 --model swinv2_tiny --channels 512 --window 16 --resolution 512
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
import torch
from safetensors.torch import save_file

from swinv2_train.config.compose import to_dict
from swinv2_train.config.model import VARIANTS, ModelConfig
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig

SMALL = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
CHANNELS = 4
TILE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--height", type=int, default=6000)
    add("--width", type=int, default=8000)
    add("--classes", type=int, default=20)
    add("--model", default="small", help="small, or a size of the paper")
    add("--decoder", default="upernet")
    add("--channels", type=int, default=64, help="channels of the decoder")
    add("--window", type=int, default=8)
    add("--resolution", type=int, default=512, help="side of a sliding window")
    add("--overlap", type=float, default=0.25)
    add("--out", type=Path, help="keep the scene and the results here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        scene = write_scene(folder / "scene.tif", arguments.height, arguments.width)
        weights = write_segmenter(folder / "segmenter.safetensors", arguments)
        command = [sys.executable, "-m", "swinv2_train.cli.predict", str(weights), str(scene)]
        command += ["--out", str(folder / "maps"), "--inference", "slide", "--overlap", str(arguments.overlap)]
        baseline, _ = peak([sys.executable, "-c", "import torch"])
        found, seconds = peak([*command, "--device", "cpu"])
        size = (folder / "maps" / "labels" / "scene.tif").stat().st_size
    scene_gib = arguments.height * arguments.width * CHANNELS * 2 / 2**30
    print(f"scene {arguments.width} x {arguments.height} x {CHANNELS}, 16 bits: {scene_gib:.2f} GiB of values")
    print(f"import torch: {baseline / 2**30:.2f} GiB; swinv2-predict: {found / 2**30:.2f} GiB at its peak")
    print(f"processor time {seconds:,.0f} s; label map {size / 2**20:.1f} MiB")


def write_scene(path: Path, height: int, width: int) -> Path:
    """Write rectangles of different brightness with noise."""
    fields = np.random.default_rng(0).integers(2_000, 60_000, (64, 64, CHANNELS))

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                rng = np.random.default_rng((top, left))
                rows = np.arange(top, min(height, top + TILE)) * 64 // height
                columns = np.arange(left, min(width, left + TILE)) * 64 // width
                noise = rng.integers(0, 2_000, (len(rows), len(columns), CHANNELS))
                yield (fields[rows[:, None], columns] + noise).astype(np.uint16)

    tags = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 5200000.0, 0.0), True)]
    tags += [(34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True)]
    tifffile.imwrite(
        path, tiles(), shape=(height, width, CHANNELS), dtype=np.uint16, tile=(TILE, TILE), compression="zlib",
        photometric="minisblack", planarconfig="contig", extratags=tags, metadata=None, maxworkers=1,
    )  # fmt: skip
    return path


def write_segmenter(path: Path, arguments: argparse.Namespace) -> Path:
    """Write a segmenter with random weights as this package does."""
    shape = SMALL if arguments.model == "small" else VARIANTS[arguments.model]
    model = ModelConfig(name=arguments.model, in_channels=CHANNELS, window=arguments.window, **shape)
    task = SegmentationConfig(
        num_classes=arguments.classes,
        decoder=arguments.decoder,
        channels=arguments.channels,
        resize="native",
        photometric=False,
    )
    sides = (arguments.resolution, arguments.resolution)
    torch.manual_seed(0)
    built = task.implementation().model_of(Config(model=model, task=task), sides)
    data = {"resolution": list(sides), "mean": [0.5] * CHANNELS, "std": [0.25] * CHANNELS}
    geometry = {"task": to_dict(task), "model": to_dict(model), "data": data, "preprocess": {}, "classes": None}
    tensors = {name: value.detach().contiguous() for name, value in built.named_parameters()}
    save_file(tensors, path, metadata={"geometry": json.dumps(geometry)})
    return path


def peak(command: list[str]) -> tuple[int, float]:
    """Run a command; return its peak of resident memory in bytes and its processor time in seconds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
