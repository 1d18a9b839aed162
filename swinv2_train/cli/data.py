"""`swinv2-data`: make data sets of WebDataset shards, check them, and measure how fast this host reads them.

Exit status: 0 all is well; 1 done, but some images or labels were skipped or cannot be used, or the command failed (a
full disk, a server that does not answer); 2 usage error (a wrong option or path, no images); 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.arguments import Parser, shards
from swinv2_train.cli.completion import offer
from swinv2_train.cli.data_arguments import STATUS, add_image, add_reading, add_shards
from swinv2_train.cli.data_pack import add_pack
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import filled, manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.cli.values import file_path, part, whole
from swinv2_train.cli.weight_arguments import writable
from swinv2_train.text import counted

if TYPE_CHECKING:
    from swinv2_train.data.inspect import Inspection
    from swinv2_train.data.overlays import Overlay
    from swinv2_train.data.shards import ShardSet

# Modules that import torch are imported where they are used, to keep --help fast.
_SHEET_SAMPLES = 48


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(argv)
    goes_on = "interrupted; rerun the same command to resume after the last finished shard"
    end(run_command("swinv2-data", lambda: _run(arguments), interrupted=goes_on), whole_process=argv is None)


def _run(arguments: argparse.Namespace) -> int:
    use_imports(arguments)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="swinv2-data",
        description="Make data sets of WebDataset shards, check them, and measure how fast this host reads them.",
        epilog=manual("data", STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="{pack,inspect,bench}")
    add_pack(commands)
    _add_inspect(commands)
    _add_bench(commands)
    for command in commands.choices.values():
        add_imports(command, "image decoders")
    return parser


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="check shards and show their contents",
        description=filled(
            "Decode every sample, with its label map and objects, and print the dataset card. List the samples that "
            "are broken, the members of the tars that are not read, labels that cannot be used, and images that are "
            "in two splits. Reads any WebDataset tars."
        ),
        epilog=manual("data", STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = inspect.add_argument
    add_shards(inspect)
    add(
        "--sheet",
        type=file_path,
        metavar="FILE.png",
        help="also draw randomly chosen samples into this image file "
        "(Chinese, Japanese, and Korean names appear as boxes)",
    )
    add(
        "--labels",
        metavar="MEMBER",
        help="check and draw the label maps in this member, such as mask.png (default: those that pack wrote)",
    )
    add(
        "--ignore",
        type=whole(0, 65535),
        metavar="VALUE",
        help="value of pixels without a class in the label maps of --labels (default: 255, with 16 bits 65535)",
    )
    add("--samples", type=whole(1), metavar="N", help="samples on the sheet (default: 48)")
    add("--seed", type=whole(), help="selects the samples of the sheet (default: 0)")
    add("--workers", type=whole(0), metavar="N", help="processes (default: one per core); 0: only this one")
    add_reading(add, "and for the sheet")
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
        epilog=manual("data", STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = bench.add_argument
    add_shards(bench)
    add("--samples", type=whole(1), default=512, metavar="N", help="samples to measure (default: %(default)s)")
    add("--batch", type=whole(1), default=64, metavar="N", help="samples of a micro-batch (default: %(default)s)")
    add("--resolution", type=whole(1), default=192, metavar="N", help="side of the crops (default: %(default)s)")
    add(
        "--least-area",
        type=part,
        default=0.67,
        metavar="SHARE",
        help="smallest part of the image area that a crop covers (default: %(default)s)",
    )
    add("--interpolation", choices=("bilinear", "bicubic"), default="bilinear", help="(default: %(default)s)")
    add("--entire", action="store_true", help="decode entire images, as with data.crop_decoding=false")
    add("--scaled", action="store_true", help="decode large images at a fraction, as with data.scaled_decoding=true")
    add("--seed", type=whole(), default=0, help="selects the samples (default: %(default)s)")
    add_image(add)
    bench.set_defaults(run=_bench)


def _inspect(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import Progress, inspection_lines, print_table
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.image_files import picture_format
    from swinv2_train.data.value_range import numbers_of

    for option in ("samples", "seed"):
        if getattr(arguments, option) is not None and arguments.sheet is None:
            raise DataError(f"--{option} applies to the contact sheet: add --sheet FILE.png")
    if arguments.sheet is not None:
        picture_format(arguments.sheet)
        writable("--sheet", arguments.sheet.parent)
    opened = _open(arguments)

    from swinv2_train.data.background import background_color
    from swinv2_train.data.contact_sheet import contact_sheet
    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.inspect import inspect
    from swinv2_train.data.parallel import available_cores

    reading = {name: getattr(arguments, name) for name in ("background", "max_pixels", "nodata")}
    workers = available_cores() if arguments.workers is None else arguments.workers
    with Progress() as progress:
        shown = functools.partial(progress.show, "samples")
        found = inspect(
            opened, workers=workers, progress=shown, labels=arguments.labels, ignore=arguments.ignore, **reading
        )
    rows = [("labels", found.labels_row()), ("exact copies", f"{found.copies:,}")]
    if found.label_maps is not None and found.label_maps.assumed:
        rows.insert(0, ("value without a class", f"{found.label_maps.ignore}, {found.label_maps.assumed}"))
    print_table([("shards", f"{len(opened.shards):,}"), *found.card.rows(), *rows])
    for line in inspection_lines(found):
        print(line)
    if arguments.sheet is not None:
        options = DecodeOptions(background_color(arguments.background, ()), arguments.max_pixels)
        count, seed = arguments.samples or _SHEET_SAMPLES, arguments.seed or 0
        nodata = numbers_of(arguments.nodata)
        overlays = _overlays(found)
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        drawn = contact_sheet(
            opened, arguments.sheet, num_samples=count, seed=seed, options=options, nodata=nodata, overlays=overlays
        )
        print(f"{counted(drawn, 'sample')} drawn in {arguments.sheet}")
    return 0 if found.complete else 1


def _overlays(found: Inspection) -> list[Overlay]:
    """Return how label maps and objects are drawn, as far as the samples have them."""
    from swinv2_train.data.overlays import LabelOverlay, ObjectOverlay

    label_maps, card, overlays = found.label_maps, found.card, list[Any]()
    if label_maps is None and card.objects is None:
        return overlays

    from swinv2_train.tasks.segmentation.colors import painted, palette

    if label_maps is not None:
        own = card.of_label_maps() or card  # of other programs, nothing is counted
        paint = functools.partial(painted, classes=own.num_classes or 1)
        overlays.append(LabelOverlay(label_maps.member, label_maps.ignore, paint, own.class_names))
    if card.objects is not None:
        colors = palette((card.num_classes or 1) + 1)[1:].tolist()  # the first one is black
        overlays.append(ObjectOverlay(lambda number: tuple(colors[number % len(colors)]), card.class_names))
    return overlays


def _open(arguments: argparse.Namespace) -> ShardSet:
    """Open the shards that a command names, and report what is loaded then."""
    from swinv2_train.data.shards import ShardSet

    spec = shards(arguments.shards)
    opened = ShardSet.open(spec, arguments.cache_dir, arguments.cache_gib, warn=False, image=arguments.image)
    loading("swinv2-data", f"the decoders for {counted(opened.num_samples, 'sample', ',')}")
    return opened


def _bench(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import feeding_lines, print_table, speed_lines
    from swinv2_train.config.schema import AugmentConfig
    from swinv2_train.data.errors import DataError

    if arguments.scaled and arguments.entire:
        raise DataError("--scaled has no effect with --entire: remove one of them")
    opened = _open(arguments)
    for line in opened.warnings():
        print(f"warning: {line}", file=sys.stderr)

    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.jpeg_part import prepare
    from swinv2_train.data.parallel import available_cores
    from swinv2_train.data.speed import measure_speed

    reason = "--entire" if arguments.entire else prepare()
    augment = AugmentConfig(scale=[arguments.least_area, 1.0], interpolation=arguments.interpolation)
    options = DecodeOptions(max_pixels=arguments.max_pixels, parts=not arguments.entire, scaled=arguments.scaled)
    side = arguments.resolution
    speed = measure_speed(
        opened,
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


if __name__ == "__main__":
    main()
