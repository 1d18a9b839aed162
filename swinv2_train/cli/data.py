"""`swinv2-data`: make data sets of WebDataset shards, check them, and measure how fast this host reads them.

Exit status: 0 all is well; 1 done, but some images or labels were skipped or cannot be used, or the command failed (a
full disk, a server that does not answer); 2 usage error (a wrong option or path, no images); 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.manual import filled, manual
from swinv2_train.cli.plugins import add_imports, use_imports

# Modules that import torch are imported where they are used, to keep --help fast.
_STATUS = (
    "exit status: 0 all is well; 1 done, but some images or labels were skipped or cannot be used, or it failed; "
    "2 usage error; 130 interrupted"
)
_QUALITY, _SHEET_SAMPLES = 92, 48
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    goes_on = "interrupted; rerun the same command to resume after the last finished shard"
    end(run_command("swinv2-data", lambda: _run(arguments), interrupted=goes_on))


def _run(arguments: argparse.Namespace) -> int:
    use_imports(arguments)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="swinv2-data",
        description="Make data sets of WebDataset shards, check them, and measure how fast this host reads them.",
        epilog=manual("data", _STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="{pack,inspect,bench}")
    _add_pack(commands)
    _add_inspect(commands)
    _add_bench(commands)
    for command in commands.choices.values():
        add_imports(command, "image decoders")
    return parser


def _add_pack(commands: Any) -> None:
    pack = commands.add_parser(
        "pack",
        help="pack images into shards",
        description=filled(
            "Pack JPEG, PNG, WebP, TIFF, BMP, GIF (its first frame), AVIF, and JPEG 2000 images, or arrays of NumPy "
            "(npy, npz), into OUT/train-000000.tar, ...: standard WebDataset tars with an index, a manifest, and a "
            "dataset card. Files are copied unchanged; each is decoded once, and what does not decode is skipped and "
            "listed in OUT/broken.jsonl. Files of other types are counted. The order is shuffled, the same for the "
            "same seed. If the command is interrupted, rerun it to resume."
        ),
        epilog=manual("data", _STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = pack.add_argument
    add(
        "source",
        metavar="SRC",
        help="a folder (searched to any depth), a list (.csv, .tsv, .jsonl with path and label; labels for several, "
        "a;b), or shards",
    )
    add("out", metavar="OUT", type=Path, help="directory for the shards")
    add(
        "--max-size", type=_size, default="256MiB", metavar="SIZE", help="upper bound of a shard (default: %(default)s)"
    )
    add(
        "--max-count",
        type=_positive,
        default=10_000,
        metavar="N",
        help="maximum number of samples in a shard (default: %(default)s)",
    )
    add("--resize", type=_positive, metavar="PIXELS", help="shrink images whose longer side is above this")
    add("--quality", type=_quality, metavar="Q", help="JPEG quality of the images that --resize shrinks (default: 92)")
    add("--channels", type=_positive, metavar="C", help="skip images that cannot be read with C channels")
    _add_reading(add, "(the shards keep the alpha channel, except that drop with --resize removes it)")
    add("--classes", action="store_true", help="the subfolders of SRC are classes: store their number as label")
    add(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="number the classes as in FILE: a name per line, or the TRAIN.dataset.json of an earlier split, "
        "or the manifest.json of a checkpoint (default: in alphabetical order, numbers by value)",
    )
    add(
        "--split",
        default="train",
        metavar="NAME",
        help="name of the shards: OUT/NAME-000000.tar (default: %(default)s)",
    )
    add(
        "--eval-share",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="put this fraction of the images into OUT/eval-*.tar",
    )
    add("--seed", type=int, default=0, help="determines the order and the split (default: %(default)s)")
    add("--workers", type=_count, metavar="N", help="processes (default: one per core); 0: only this one")
    add("--overwrite", action="store_true", help="replace shards in OUT that were packed from another source")
    pack.set_defaults(run=_pack)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="check shards and show their contents",
        description=filled(
            "Decode every sample and print the dataset card. List the samples that are broken, the members of "
            "the tars that are not read, labels that cannot be used, and images that are in two splits. Reads any "
            "WebDataset tars."
        ),
        epilog=manual("data", _STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = inspect.add_argument
    _add_shards(add)
    add(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="also draw randomly chosen samples into this image file "
        "(Chinese, Japanese, and Korean names appear as boxes)",
    )
    add("--samples", type=_positive, metavar="N", help="samples on the sheet (default: 48)")
    add("--seed", type=int, help="selects the samples of the sheet (default: 0)")
    add("--workers", type=_count, metavar="N", help="processes (default: one per core); 0: only this one")
    _add_reading(add, "and for the sheet")
    inspect.set_defaults(run=_inspect)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure how fast this host makes training images",
        description=filled(
            "Read, decode, crop, and collate random samples as a data worker does, and print the images per second and "
            "core of each stage, by CPU time. The storage is not measured: samples are read once before. From this "
            "and the FLOPs of each model, estimate how many GPUs the cores of this host can feed."
        ),
        epilog=manual("data", _STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = bench.add_argument
    _add_shards(add)
    add("--samples", type=_positive, default=512, metavar="N", help="samples to measure (default: %(default)s)")
    add("--batch", type=_positive, default=64, metavar="N", help="samples of a micro-batch (default: %(default)s)")
    add("--resolution", type=_positive, default=192, metavar="N", help="side of the crops (default: %(default)s)")
    add(
        "--least-area",
        type=_area,
        default=0.67,
        metavar="SHARE",
        help="smallest part of the image area that a crop covers (default: %(default)s)",
    )
    add("--interpolation", choices=("bilinear", "bicubic"), default="bilinear", help="(default: %(default)s)")
    add("--entire", action="store_true", help="decode entire images, as with data.crop_decoding=false")
    add("--scaled", action="store_true", help="decode large images at a fraction, as with data.scaled_decoding=true")
    add("--seed", type=int, default=0, help="selects the samples (default: %(default)s)")
    _add_image(add)
    bench.set_defaults(run=_bench)


def _add_shards(add: Any) -> None:
    """Add the argument that names shards, and the options of their cache."""
    add(
        "shards",
        metavar="SHARDS",
        nargs="+",
        help="a tar, a directory, a pattern such as 'x-{000000..000012}.tar', a URL",
    )
    add(
        "--cache-dir",
        default="~/.cache/swinv2_train/shards",
        help="directory of the cache of remote shards (default: %(default)s)",
    )
    add("--cache-gib", type=_gib, default=50.0, help="maximum size of that cache in GiB (default: %(default)s)")


def _add_reading(add: Any, background: str) -> None:
    """Add options for reading images."""
    add(
        "--background",
        type=_background,
        default="white",
        metavar="COLOR",
        help="color behind transparent pixels, as data.background, for mean and standard deviation "
        f"{background}: white, black, drop (ignore alpha), or numbers from 0 to 1 such as 0.5,0.5,0.5 "
        "(default: %(default)s)",
    )
    add(
        "--nodata",
        type=_values,
        metavar="VALUE",
        help="stored value of pixels without data, as data.nodata, or one per channel such as 0,0,-9999; NaN always is "
        "(default: the tag GDAL_NODATA of a GeoTIFF)",
    )
    _add_image(add)


def _add_image(add: Any) -> None:
    """Add options that select the image of a sample."""
    add(
        "--image",
        metavar="KEY",
        help="for samples with several images in shards, read this member, such as left.png "
        "(default: the alphabetically first one without a dot)",
    )
    add(
        "--max-pixels",
        type=_positive,
        default=200_000_000,
        metavar="N",
        help="larger images are broken (default: %(default)s)",
    )


def _pack(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import Progress, label_lines, print_table
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.pack import BROKEN_FILE, PackOptions, PackRun, pack
    from swinv2_train.data.parallel import available_cores

    if "/" in arguments.split or arguments.split.startswith(".") or not arguments.split:
        raise DataError(f"--split {arguments.split!r} cannot be the start of a file name")
    if arguments.eval_share and arguments.split == "eval":
        raise DataError("--split eval and --eval-share would write the same shards")
    if arguments.quality and not arguments.resize:
        raise DataError("--quality applies to images that --resize shrinks: add --resize PIXELS")
    options = PackOptions(
        max_bytes=arguments.max_size,
        max_count=arguments.max_count,
        resize=arguments.resize,
        quality=arguments.quality or _QUALITY,
        channels=arguments.channels,
        seed=arguments.seed,
        background=arguments.background,
        max_pixels=arguments.max_pixels,
        image=arguments.image,
        nodata=arguments.nodata,
    )
    with Progress() as progress:
        report = pack(
            arguments.source,
            arguments.out,
            options,
            split=arguments.split,
            eval_share=arguments.eval_share,
            classes=arguments.classes,
            class_names=arguments.class_names,
            how=PackRun(
                workers=available_cores() if arguments.workers is None else arguments.workers,
                overwrite=arguments.overwrite,
                progress=progress.show,
            ),
        )
    for card in report.cards.values():
        print_table(card.rows())
    reused = f", {report.num_reused} of them finished before" if report.num_reused else ""
    print(f"{report.num_shards} {'shard' if report.num_shards == 1 else 'shards'} in {arguments.out}{reused}")
    for warning in (*report.warnings, *report.notes):
        print(f"warning: {warning}", file=sys.stderr)
    for line in label_lines([(problem["path"], problem["reason"]) for problem in report.label_problems]):
        print(line, file=sys.stderr)
    if report.broken:
        where = arguments.out / BROKEN_FILE
        broken = (
            "1 image is broken and was"
            if len(report.broken) == 1
            else f"{len(report.broken)} images are broken and were"
        )
        print(f"{broken} skipped: see {where}", file=sys.stderr)
    return 0 if report.complete else 1


def _inspect(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import Progress, inspection_lines, print_table
    from swinv2_train.cli.evaluate import writable
    from swinv2_train.data.background import background_color
    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.inspect import contact_sheet, inspect, sheet_format
    from swinv2_train.data.parallel import available_cores
    from swinv2_train.data.shards import ShardSet
    from swinv2_train.data.value_range import numbers_of

    for option in ("samples", "seed"):
        if getattr(arguments, option) is not None and arguments.sheet is None:
            raise DataError(f"--{option} applies to the contact sheet: add --sheet FILE.png")
    if arguments.sheet is not None:
        sheet_format(arguments.sheet)
        writable("--sheet", arguments.sheet.parent)
    shards = ShardSet.open(
        arguments.shards, arguments.cache_dir, arguments.cache_gib, warn=False, image=arguments.image
    )
    reading = {name: getattr(arguments, name) for name in ("background", "max_pixels", "nodata")}
    workers = available_cores() if arguments.workers is None else arguments.workers
    with Progress() as progress:
        shown = functools.partial(progress.show, "samples")
        found = inspect(shards, workers=workers, progress=shown, **reading)
    rows = [("labels", found.labels_row()), ("exact copies", f"{found.copies:,}")]
    print_table([("shards", f"{len(shards.shards):,}"), *found.card.rows(), *rows])
    for line in inspection_lines(found):
        print(line)
    if arguments.sheet is not None:
        options = DecodeOptions(background_color(arguments.background, ()), arguments.max_pixels)
        count, seed = arguments.samples or _SHEET_SAMPLES, arguments.seed or 0
        nodata = numbers_of(arguments.nodata)
        drawn = contact_sheet(shards, arguments.sheet, num_samples=count, seed=seed, options=options, nodata=nodata)
        print(f"{drawn} samples drawn in {arguments.sheet}")
    return 0 if found.complete else 1


def _bench(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import feeding_lines, print_table, speed_lines
    from swinv2_train.config.schema import AugmentConfig
    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.jpeg_part import prepare
    from swinv2_train.data.parallel import available_cores
    from swinv2_train.data.shards import ShardSet
    from swinv2_train.data.speed import measure_speed

    if arguments.scaled and arguments.entire:
        raise DataError("--scaled has no effect with --entire: remove one of them")
    reason = "--entire" if arguments.entire else prepare()
    shards = ShardSet.open(
        arguments.shards, arguments.cache_dir, arguments.cache_gib, warn=False, image=arguments.image
    )
    augment = AugmentConfig(scale=[arguments.least_area, 1.0], interpolation=arguments.interpolation)
    options = DecodeOptions(max_pixels=arguments.max_pixels, parts=not arguments.entire, scaled=arguments.scaled)
    side = arguments.resolution
    speed = measure_speed(
        shards,
        (side, side),
        augment,
        options,
        num_samples=arguments.samples,
        micro_batch=arguments.batch,
        seed=arguments.seed,
    )
    decoder = f"torchvision, entire images: {reason}" if reason else "libjpeg-turbo, only the parts that crops need"
    crops = f"{side} x {side} of at least {arguments.least_area:.0%} of the area, {arguments.interpolation}"
    print_table([("JPEG decoder", decoder), ("crops", crops)])
    for line in (*speed_lines(speed), "", *feeding_lines(speed.rate(), available_cores(), side)):
        print(line)
    if speed.num_broken:
        print(f"{speed.num_broken} broken samples were left out: see swinv2-data inspect", file=sys.stderr)
    return 1 if speed.num_broken else 0


def _size(text: str) -> int:
    number = text.lower().removesuffix("b")
    digits = number.rstrip("kmgi")
    unit = number[len(digits) :]
    try:
        size = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 500000000, 500MB or 256MiB") from None
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")
    return size


def _whole(text: str, lowest: int, highest: int | None = None) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if number < lowest or (highest is not None and number > highest):
        bounds = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise argparse.ArgumentTypeError(f"{number} must be {bounds}")
    return number


def _positive(text: str) -> int:
    return _whole(text, 1)


def _count(text: str) -> int:
    return _whole(text, 0)


def _quality(text: str) -> int:
    return _whole(text, 1, 100)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _gib(text: str) -> float:
    size = _number(text)
    if not size > 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return size


def _background(text: str) -> str | list[float]:
    if text in ("white", "black", "drop"):
        return text
    if text == "mean":
        raise argparse.ArgumentTypeError("mean works only for data.background: the mean is being measured here")
    numbers = [_number(part) for part in text.strip("[]").split(",")]
    if not all(0 <= number <= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} must be numbers from 0 to 1")
    return numbers


def _values(text: str) -> list[float]:
    return [_number(part) for part in text.strip("[]").split(",")]


def _area(text: str) -> float:
    share = _number(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return share


def _share(text: str) -> float:
    share = _number(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 1")
    return share


if __name__ == "__main__":
    main()
