"""Training clips per second of one core, and the fraction of the CPU time that decoding takes.

    OMP_NUM_THREADS=1 python scripts/bench/video_loader.py --out scripts/bench/results/video_loader.json

Videos of 340x256 and 300 frames, H.264, pan over the photographs of scripts/photos.py, with noise as of a camera. They
are read from a tar with a warm page cache, in one process without workers. A clip is 32 frames, 2 apart, with one
random resized crop to 224 pixels and a flip. Every round runs all cases in turn; results are medians. Time is CPU time.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from report import write_report

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from photos import TRAIN, locate  # noqa: E402

from swinv2_train.config.schema import AugmentConfig  # noqa: E402
from swinv2_train.data.clips import train_clip  # noqa: E402
from swinv2_train.data.geometry import draw_crop  # noqa: E402
from swinv2_train.data.sample import Sample  # noqa: E402
from swinv2_train.data.shards import ShardSet  # noqa: E402
from swinv2_train.data.video import probe  # noqa: E402

SIZE, FRAMES, SIDE, GRAIN = (256, 340), 300, 224, 3.0
CLIP, STRIDE = 32, 2
CASES = {
    "keyframe every 250 frames": (250, True),
    "keyframe every 30 frames": (30, True),
    "keyframe every 30 frames, without frames.json": (30, False),
}
"""By name: distance of keyframes, and whether the samples have `frames.json`."""


def encode(number: int, gop: int) -> bytes:
    """Return an mp4 file whose frames pan over a photograph."""
    rng = np.random.default_rng(number)
    photograph = Image.open(locate(TRAIN[number % len(TRAIN)])).convert("RGB")
    share = 0.6 * min(photograph.width / SIZE[1], photograph.height / SIZE[0])
    width, height = share * SIZE[1], share * SIZE[0]
    start, end = (rng.uniform(0, 1, 2) * (photograph.width - width, photograph.height - height) for _ in range(2))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23", "g": str(gop), "keyint_min": str(gop)}
        for index in range(FRAMES):
            left, top = start + (end - start) * index / FRAMES
            box = (left, top, left + width, top + height)
            image = np.asarray(photograph.resize(SIZE[::-1], Image.Resampling.BILINEAR, box), np.float32)
            noisy = image + rng.normal(0, GRAIN, (*SIZE, 1)).astype(np.float32)
            frame = av.VideoFrame.from_ndarray(np.clip(noisy, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def write_tar(path: Path, videos: list[bytes], with_facts: bool) -> ShardSet:
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(videos):
            members = {"mp4": data}
            if with_facts:
                members["frames.json"] = json.dumps(probe(data).to_json()).encode()
            for name, content in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    shards = ShardSet.open(str(path), path.parent / "cache", main="video")
    shards.declare(["frames.json"])
    return shards


def measure(shards: ShardSet, clips: int, seed: int) -> dict[str, float]:
    """Return clips per second, and the fractions of the time of facts, decoding, and augmentation."""
    spent = {"facts": 0.0, "decoding": 0.0, "augmentation": 0.0}
    augment = AugmentConfig()
    began = time.process_time()
    for number in range(clips):
        rng = np.random.default_rng([seed, number])
        sample = Sample(shards.read(number % shards.num_samples, ("video", "frames.json")))
        start = time.process_time()
        video = sample.video
        spent["facts"] += time.process_time() - start
        crop = draw_crop(video.size, (SIDE, SIDE), augment, rng)
        inside = 0.0

        def cropped(frame: torch.Tensor, crop: Any = crop) -> torch.Tensor:
            nonlocal inside
            start = time.process_time()
            image = crop.image(frame, augment.interpolation)
            inside += time.process_time() - start
            return image

        start = time.process_time()
        video.frames(train_clip(video.facts.frames, CLIP, STRIDE, rng), cropped)
        spent["decoding"] += time.process_time() - start - inside
        spent["augmentation"] += inside
    total = time.process_time() - began
    return {"clips_per_second": clips / total} | {name: value / total for name, value in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--clips", type=int, default=16, help="clips per case and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        videos = {gop: [encode(number, gop) for number in range(options.videos)] for gop in (250, 30)}
        sets = {
            name: write_tar(Path(folder) / f"{place}.tar", videos[gop], with_facts)
            for place, (name, (gop, with_facts)) in enumerate(CASES.items())
        }
        rounds = [
            {name: measure(shards, options.clips, seed) for name, shards in sets.items()}
            for seed in range(options.rounds)
        ]
    results = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]} for name in CASES
    }
    for name, values in results.items():
        parts = ", ".join(f"{key} {values[key]:.0%}" for key in ("facts", "decoding", "augmentation"))
        print(f"{name}: {values['clips_per_second']:.2f} clips/s; {parts}")
    sizes = {str(gop): statistics.mean(map(len, made)) / 1000 for gop, made in videos.items()}
    write_report(options.out, ("torch", "av"), kilobytes_per_video=sizes, results=results)


if __name__ == "__main__":
    main()
