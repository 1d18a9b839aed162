"""Training images per second of one core, against ImageFolder, webdataset, and mosaicml-streaming with PIL.

    OMP_NUM_THREADS=1 python scripts/bench/data.py --out scripts/bench/results/data.json

All read the same JPEGs, cut from the photographs of scripts/photos.py, from a warm page cache, in one process without
workers, and make batches of random resized crops with flips. Every round runs all of them in turn on the same number
of images; a ratio is the median over the rounds. Time is CPU time of the process. The others return normalized fp32, as
they are commonly used; here images stay uint8, because they are normalized on the GPU. `ours, fp32` normalizes them as
well. Peers that are not installed are left out (pip install mosaicml-streaming).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import write_report

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from photos import TRAIN, locate  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from swinv2_train.config.schema import AugmentConfig  # noqa: E402
from swinv2_train.data import jpeg_part  # noqa: E402
from swinv2_train.data.augment import normalise, train_image  # noqa: E402
from swinv2_train.data.channel_statistics import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from swinv2_train.data.decode import DecodeOptions  # noqa: E402
from swinv2_train.data.lanes import LaneOrder  # noqa: E402
from swinv2_train.data.loader import SampleSource, Share, TrainLoader  # noqa: E402
from swinv2_train.data.shards import ShardSet  # noqa: E402
from swinv2_train.data.transform import Transform  # noqa: E402

SIDE, BATCH, GRAIN = 192, 32, 6.0
CASES = {
    "500x400, supervised (8% of the area, bicubic)": ((500, 400), 192, [0.08, 1.0], "bicubic"),
    "500x400, SimMIM (67% of the area, bilinear)": ((500, 400), 192, [0.67, 1.0], "bilinear"),
    "1600x1200, supervised (8% of the area, bicubic)": ((1600, 1200), 32, [0.08, 1.0], "bicubic"),
    "1600x1200, SimMIM (67% of the area, bilinear)": ((1600, 1200), 32, [0.67, 1.0], "bilinear"),
}
"""By name: width and height, number of images, area of the crops, and interpolation."""
Batches = Iterator[Any]


class Crops(Transform):
    """Image only, cropped as in training."""

    def __init__(self, augment: AugmentConfig) -> None:
        self.augment = augment

    def __call__(self, sample: Any, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {"image": train_image(sample, (SIDE, SIDE), self.augment, rng)}


def make_images(folder: Path, size: tuple[int, int], count: int) -> float:
    """Write JPEGs into two class folders; return their mean size in kB. Qualities are from 90 to 96, as in ImageNet."""
    rng = np.random.default_rng(0)
    photographs = [Image.open(locate(name)).convert("RGB") for name in TRAIN]
    total = 0
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        share = rng.uniform(0.5, 1.0) * min(photograph.width / size[0], photograph.height / size[1])
        width, height = share * size[0], share * size[1]
        left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
        image = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        pixels = np.clip(np.asarray(image) + rng.normal(0, GRAIN, (size[1], size[0], 1)), 0, 255).astype(np.uint8)
        path = folder / f"class{number % 2}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=int(rng.integers(90, 97)))
        total += path.stat().st_size
    return total / count / 1000


def pack(images: Path, out: Path) -> Path:
    """Write one tar with webdataset."""
    import webdataset

    out.mkdir()
    with webdataset.TarWriter(str(out / "train-000000.tar")) as tar:
        for path in sorted(images.rglob("*.jpg")):
            tar.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": path.parent.name[-1].encode()})
    return out / "train-000000.tar"


def batched(samples: Iterator[torch.Tensor]) -> Batches:
    """Stack images into endless batches."""
    while True:
        yield torch.stack(list(itertools.islice(samples, BATCH)))


def by_pil(scale: list[float], interpolation: str) -> Callable[[Image.Image], torch.Tensor]:
    """Return the transform of the official recipes."""
    mode = transforms.InterpolationMode(interpolation)
    return transforms.Compose([
        transforms.RandomResizedCrop(SIDE, scale=scale, interpolation=mode),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip


def image_folder(images: Path, transform: Callable) -> Batches:
    dataset = datasets.ImageFolder(str(images), transform)
    rng = np.random.default_rng(0)
    return batched(dataset[index][0] for _ in itertools.count() for index in rng.permutation(len(dataset)))


def by_webdataset(tar: Path, transform: Callable) -> Batches:
    import webdataset

    dataset = webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil").to_tuple("jpg").repeat()
    return batched(transform(image) for (image,) in dataset)


def write_mds(images: Path, out: Path) -> Path | None:
    """Write the images for mosaicml-streaming; None if it is not installed."""
    try:
        from streaming import MDSWriter
    except ImportError as error:
        print(f"mosaicml-streaming is left out: {error}", file=sys.stderr)
        return None
    with MDSWriter(out=str(out), columns={"image": "bytes", "label": "int"}) as writer:
        for path in sorted(images.rglob("*.jpg")):
            writer.write({"image": path.read_bytes(), "label": int(path.parent.name[-1])})
    return out


def mds_samples(folder: Path) -> Iterator[bytes]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)
    while True:
        for sample in dataset:
            yield sample["image"]


def by_mosaicml(folder: Path, transform: Callable) -> Batches:
    return batched(transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in mds_samples(folder))


def ours(tar: Path, scale: list[float], interpolation: str, *, fp32: bool = False, **options: bool) -> Batches:
    """The training loader, without workers."""
    shards = ShardSet.open(str(tar))
    augment = AugmentConfig(scale=scale, interpolation=interpolation)
    source = SampleSource(shards, Crops(augment), 3, seed=0, decoding=DecodeOptions(**options))
    loader = TrainLoader(source, LaneOrder(shards.num_samples, 0, lanes=1), Share(BATCH), global_batch=BATCH)
    for batch in loader:
        yield normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD) if fp32 else batch["image"]


def raw(tar: Path, images: Path, mds: Path | None) -> dict[str, Iterator[bytes]]:
    """Return endless encoded images, without decoding."""
    import webdataset

    shards, paths = ShardSet.open(str(tar)), sorted(images.rglob("*.jpg"))
    found = {
        "webdataset": (sample["jpg"] for sample in webdataset.WebDataset(str(tar), shardshuffle=False).repeat()),
        "files": (path.read_bytes() for path in itertools.cycle(paths)),
        "ours": (shards.read(index % shards.num_samples, ("image",)).data for index in itertools.count()),
    }
    return found | ({"mosaicml-streaming": mds_samples(mds)} if mds else {})


def interleaved(sources: dict[str, Iterator[Any]], items: int, rounds: int, images: int, base: str) -> dict[str, Any]:
    """Take `items` from every source in every round; return medians of images/s and of the ratio to `base`."""
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    names = list(sources)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.process_time()
            for _ in range(items):
                next(sources[name])
            if number:  # the first round loads libraries
                seconds[name].append(time.process_time() - begun)
    return {
        name: {
            "images_per_second": round(images / statistics.median(times), 1),
            "ratio": round(statistics.median(b / own for own, b in zip(times, seconds[base], strict=True)), 3),
        }
        for name, times in seconds.items()
    }


def measure(folder: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    size, count, scale, interpolation = CASES[name]
    images = folder / "images"
    mean_kb = make_images(images, size, count)
    tar = pack(images, folder / "tar")
    mds, transform = write_mds(images, folder / "mds"), by_pil(scale, interpolation)
    sources = {
        "ImageFolder": image_folder(images, transform),
        "webdataset": by_webdataset(tar, transform),
        **({"mosaicml-streaming": by_mosaicml(mds, transform)} if mds else {}),
        "ours": ours(tar, scale, interpolation),
        "ours, fp32": ours(tar, scale, interpolation, fp32=True),
        "ours, entire images": ours(tar, scale, interpolation, parts=False),
    }
    if size[0] > 1000:
        sources["ours, scaled"] = ours(tar, scale, interpolation, scaled=True)
    batches = max(1, options.images // BATCH if size[0] < 1000 else options.images // BATCH // 4)
    found = interleaved(sources, batches, options.rounds, batches * BATCH, "ImageFolder")
    result: dict[str, Any] = {"case": name, "mean_kb": round(mean_kb, 1), "crops": found}
    if size[0] < 1000:
        result["reading"] = interleaved(raw(tar, images, mds), 1000, options.rounds, 1000, "webdataset")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--images", type=int, default=128, help="images of a path in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    decoder = jpeg_part.prepare() or "libjpeg-turbo, only the parts that crops need"
    print(f"JPEG decoder: {decoder}")
    results = []
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(Path(folder), name, options))
        print(json.dumps(results[-1], indent=1), flush=True)
    packages = ["torch", "torchvision", "pillow", "webdataset"]
    if "mosaicml-streaming" in results[0]["crops"]:
        packages.append("mosaicml-streaming")
    write_report(options.out, tuple(packages), decoder=decoder, side=SIDE, batch=BATCH, results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
