"""Peak memory of `swinv2-predict` on a large synthetic scene: a GeoTIFF of 4 channels of 16 bits, in tiles.

The scene is written tile by tile; the model is that of an experiment, with random weights. The command runs in its own
process, whose peak of resident memory is printed, next to that of importing torch alone.

    python scripts/bench/predict_scene.py --height 768                                 # the model of segment_tiles
    python scripts/bench/predict_scene.py --small task.decoder=linear task.overlap=0.1
    python scripts/bench/predict_scene.py --small --height 512 --classes 150 task.decoder=linear \\
        task.test_scales=[0.75,1,1.25] task.test_flip=true
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
from report import write_report
from safetensors.torch import save_file

from swinv2_train.config.checks import resolution
from swinv2_train.config.compose import compose, to_dict
from swinv2_train.config.schema import Config

SMALL = ("model.embed_dim=16", "model.depths=[1,1,2,1]", "model.num_heads=[1,2,4,8]", "task.channels=64")
CHANNELS = 4
TILE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("changes", nargs="*", metavar="KEY=VALUE", help="changes to the experiment, such as model=swinv2_base")
    add("--height", type=int, default=6000)
    add("--width", type=int, default=8000)
    add("--classes", type=int, default=20)
    add("--experiment", default="segment_tiles", help="(default: %(default)s)")
    add("--small", action="store_true", help="a backbone and a decoder of a few channels")
    add("--folder", type=Path, help="keep the scene and the label map here")
    add("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    given = [*(SMALL if arguments.small else ()), *arguments.changes]
    config = compose([
        f"+experiment={arguments.experiment}", f"model.in_channels={CHANNELS}", "data.mean=0.5", "data.std=0.25",
        f"task.num_classes={arguments.classes}", "data.shards=none", "task.photometric=false", *given,
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        scene = write_scene(folder / "scene.tif", arguments.height, arguments.width)
        weights = write_segmenter(folder / "segmenter.safetensors", config)
        command = [sys.executable, "-m", "swinv2_train.cli.predict", str(weights), str(scene)]
        baseline, _ = peak([sys.executable, "-c", "import torch"])
        found, seconds = peak([*command, "--out", str(folder / "maps"), "--device", "cpu"])
        size = (folder / "maps" / "labels" / "scene.tif").stat().st_size
    results = {
        "scene": [arguments.width, arguments.height, CHANNELS],
        "scene_gib": arguments.height * arguments.width * CHANNELS * 2 / 2**30,
        "torch_gib": baseline / 2**30,
        "predict_gib": found / 2**30,
        "processor_seconds": seconds,
        "label_map_mib": size / 2**20,
    }
    size_text = f"{arguments.width} x {arguments.height} x {CHANNELS}"
    print(f"scene {size_text}, 16 bits: {results['scene_gib']:.2f} GiB of values")
    print(f"import torch: {results['torch_gib']:.2f} GiB; swinv2-predict: {results['predict_gib']:.2f} GiB at its peak")
    print(f"processor time {seconds:,.0f} s; label map {results['label_map_mib']:.1f} MiB")
    settings = {"experiment": arguments.experiment, "classes": arguments.classes, "changes": given}
    write_report(arguments.out, ("torch", "tifffile"), settings=settings, results=results)


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


def write_segmenter(path: Path, config: Config) -> Path:
    """Write a segmenter with random weights as this package does."""
    sides = resolution(config)
    torch.manual_seed(0)
    built = config.task.implementation().model_of(config, sides)
    data = {"resolution": list(sides), "mean": [0.5] * CHANNELS, "std": [0.25] * CHANNELS}
    sections = {"task": to_dict(config.task), "model": to_dict(config.model), "data": data}
    tensors = {name: value.detach().contiguous() for name, value in built.named_parameters()}
    save_file(tensors, path, metadata={"geometry": json.dumps(sections | {"preprocess": {}, "classes": None})})
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
