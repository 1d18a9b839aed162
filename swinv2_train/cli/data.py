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
_SHEET_IMAGES, _SHEET_VIDEOS = 48, 12


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
            "Decode every sample, an image with its label map and objects or a video, and print the dataset card. List "
            "the samples that are broken, the members of the tars that are not read, labels that cannot be used, and "
            "images or videos that are in two splits. Reads any WebDataset tars."
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
        help="also draw randomly chosen samples into this image file, 8 frames of a video "
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
    add("--samples", type=whole(1), metavar="N", help="samples on the sheet (default: 48, or 12 videos)")
    add("--video", action="store_true", help="read the videos of samples that have images as well")
    add("--seed", type=whole(), help="selects the samples of the sheet (default: 0)")
    add("--workers", type=whole(0), metavar="N", help="processes (default: one per core); 0: only this one")
    add_reading(add, "and for the sheet")
    inspect.set_defaults(run=_inspect)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure how fast this host makes training images or clips",
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
    add("--frames", type=whole(1), metavar="N", help="measure clips of N frames, for shards of videos")
    add("--frame-stride", type=whole(1), metavar="N", help="distance of two frames of a clip (default: 2)")
    add("--entire", action="store_true", help="decode entire images, as with data.crop_decoding=false")
    add("--scaled", action="store_true", help="decode large images at a fraction, as with data.scaled_decoding=true")
    add("--seed", type=whole(), default=0, help="selects the samples (default: %(default)s)")
    add_image(add)
    bench.set_defaults(run=_bench)


def _inspect(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import Progress, inspection_lines, print_table
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.image_files import picture_format

    for option in ("samples", "seed"):
        if getattr(arguments, option) is not None and arguments.sheet is None:
            raise DataError(f"--{option} applies to the contact sheet: add --sheet FILE.png")
    if arguments.sheet is not None:
        picture_format(arguments.sheet)
        writable("--sheet", arguments.sheet.parent)
    opened = _open_of_any_kind(arguments)
    _say_loading(opened)

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
        print(f"{counted(_draw_sheet(arguments, opened, found), 'sample')} drawn in {arguments.sheet}")
    return 0 if found.complete else 1


def _draw_sheet(arguments: argparse.Namespace, opened: ShardSet, found: Inspection) -> int:
    """Draw the contact sheet, or the film strips of videos; return the number of samples on it."""
    from swinv2_train.data.background import background_color
    from swinv2_train.data.contact_sheet import contact_sheet
    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.film_strips import film_sheet
    from swinv2_train.data.samples import VIDEO
    from swinv2_train.data.value_range import numbers_of

    videos = opened.scope.main == VIDEO
    usual = _SHEET_VIDEOS if videos else _SHEET_IMAGES
    chosen = {"num_samples": arguments.samples or usual, "seed": arguments.seed or 0}
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    if videos:
        return film_sheet(opened, arguments.sheet, max_pixels=arguments.max_pixels, **chosen)
    options = DecodeOptions(background_color(arguments.background, ()), arguments.max_pixels)
    shown = {"options": options, "nodata": numbers_of(arguments.nodata), "overlays": _overlays(found)}
    return contact_sheet(opened, arguments.sheet, **chosen, **shown)


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


def _open_of_any_kind(arguments: argparse.Namespace) -> ShardSet:
    """Open shards of images, or without images of videos. Raises DataError for options of images with videos."""
    from swinv2_train.data.errors import DataError, OtherSamples
    from swinv2_train.data.samples import IMAGE, VIDEO

    try:
        opened = _open(arguments, VIDEO if arguments.video else IMAGE)
    except OtherSamples as other:
        if arguments.video:
            other.args = (f"{other}: remove --video",)
            raise
        opened = _open(arguments, other.main)
    for name in ("labels", "ignore", "nodata", "image") if opened.scope.main == VIDEO else ():
        if getattr(arguments, name) is not None:
            raise DataError(f"--{name} is for images, and these shards have videos: omit it")
    return opened


def _open(arguments: argparse.Namespace, main: str = "image") -> ShardSet:
    """Open the shards that a command names."""
    from swinv2_train.data.shards import ShardSet

    spec, image = shards(arguments.shards), arguments.image
    return ShardSet.open(spec, arguments.cache_dir, arguments.cache_gib, warn=False, image=image, main=main)


def _say_loading(opened: ShardSet) -> None:
    """Report what is loaded after the shards were opened."""
    loading("swinv2-data", f"the decoders for {counted(opened.num_samples, 'sample', ',')}")


def _bench(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import feeding_lines, print_table, speed_lines
    from swinv2_train.config.schema import AugmentConfig
    from swinv2_train.data.errors import OtherSamples
    from swinv2_train.data.samples import IMAGE, VIDEO

    clip = _clip(arguments)
    try:
        opened = _open(arguments, VIDEO if clip else IMAGE)
    except OtherSamples as other:
        other.args = (f"{other}: {'remove --frames' if clip else 'add --frames 16'}",)
        raise
    _say_loading(opened)
    for line in opened.warnings():
        print(f"warning: {line}", file=sys.stderr)

    from swinv2_train.data.decode import DecodeOptions
    from swinv2_train.data.jpeg_part import prepare
    from swinv2_train.data.parallel import available_cores
    from swinv2_train.data.speed import measure_speed

    reason = "--entire" if arguments.entire else "" if clip else prepare()
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
        clip=clip,
    )
    frames = clip[0] if clip else 0
    decoder = f"torchvision, entire images: {reason}" if reason else "libjpeg-turbo, only the parts that crops need"
    how = ("clips", f"{frames} frames at stride {clip[1]}") if clip else ("JPEG decoder", decoder)
    crops = f"{side} x {side} of at least {arguments.least_area:.0%} of the area, {arguments.interpolation}"
    print_table([how, ("crops", crops)])
    for line in (*speed_lines(speed, frames), "", *feeding_lines(speed.rate(), available_cores(), side, frames)):
        print(line)
    if speed.num_broken:
        print(f"{speed.num_broken} broken samples were left out: see swinv2-data inspect", file=sys.stderr)
    return 1 if speed.num_broken else 0


def _clip(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """Return frames and stride of the clips to be measured; None for images.

    Raises:
        DataError: for an option without effect.
    """
    from swinv2_train.data.errors import DataError

    if arguments.scaled and arguments.entire:
        raise DataError("--scaled has no effect with --entire: remove one of them")
    if arguments.frames is None:
        if arguments.frame_stride is not None:
            raise DataError("--frame-stride is for clips: add --frames N")
        return None
    for option in ("scaled", "entire", "image"):
        if getattr(arguments, option):
            raise DataError(f"--{option} is for images, and --frames measures videos: remove one of them")
    return arguments.frames, arguments.frame_stride or 2


if __name__ == "__main__":
    main()
