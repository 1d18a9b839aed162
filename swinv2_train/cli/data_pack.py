"""`swinv2-data pack`: images with label maps and objects, or videos, into shards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.data_arguments import STATUS, add_reading
from swinv2_train.cli.data_pack_videos import add_videos, check_fps, video_packing
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import filled, manual
from swinv2_train.cli.values import file_path, fraction, size, whole
from swinv2_train.cli.weight_arguments import writable
from swinv2_train.text import counted

if TYPE_CHECKING:
    from swinv2_train.data.label_pairs import LabelMaps
    from swinv2_train.data.pack_entries import Source
    from swinv2_train.data.pack_objects import ObjectsOption
    from swinv2_train.data.tiling import Tiling

# Modules that import torch are imported where they are used, to keep --help fast.
_QUALITY = 92


def add_pack(commands: Any) -> None:
    """Add the command `pack`."""
    pack = commands.add_parser(
        "pack",
        help="pack images or videos into shards",
        description=filled(
            "Pack JPEG, PNG, WebP, TIFF, BMP, GIF (its first frame), AVIF, and JPEG 2000 images, arrays of NumPy "
            "(npy, npz), or with --video videos, into OUT/train-000000.tar, ...: standard WebDataset tars with an "
            "index, a manifest, and a dataset card. Files are copied unchanged; each is decoded once, and what does "
            "not decode is skipped and listed in OUT/broken.jsonl. Files of other types are counted. The order is "
            "shuffled, the same for the same seed. If the command is interrupted, rerun it to resume."
        ),
        epilog=manual("data", STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = pack.add_argument
    add(
        "source",
        metavar="SRC",
        help="a folder (searched to any depth), a list (.csv, .tsv, .jsonl with path and label; labels for several, "
        "a;b), or shards",
    )
    add("out", metavar="OUT", type=file_path, help="directory for the shards")
    add("--max-size", type=size, default="256MiB", metavar="SIZE", help="upper bound of a shard (default: %(default)s)")
    add(
        "--max-count",
        type=whole(1),
        default=10_000,
        metavar="N",
        help="maximum number of samples in a shard (default: %(default)s)",
    )
    add("--resize", type=whole(1), metavar="PIXELS", help="shrink images whose longer side is above this")
    add(
        "--quality",
        type=whole(1, 100),
        metavar="Q",
        help="JPEG quality of the images that --resize shrinks, and of the tiles of a JPEG (default: 92)",
    )
    add_videos(add)
    add("--channels", type=whole(1), metavar="C", help="skip images that cannot be read with C channels")
    add_reading(add, "(the shards keep the alpha channel, except that drop with --resize removes it)")
    _add_label_maps(add)
    _add_objects(add)
    add(
        "--tile",
        type=whole(16),
        metavar="PIXELS",
        help="cut larger images, with their label maps and objects, into tiles of PIXELS x PIXELS; a TIFF is read in "
        "parts, other formats are decoded whole, up to --max-pixels",
    )
    add("--overlap", type=whole(0), metavar="PIXELS", help="pixels that neighboring tiles share (default: 0)")
    add("--classes", action="store_true", help="the subfolders of SRC are classes: store their number as label")
    add(
        "--class-names",
        "--classes-file",
        type=file_path,
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
        type=fraction,
        default=0.0,
        metavar="SHARE",
        help="put this fraction of the images or videos into OUT/eval-*.tar",
    )
    add("--seed", type=whole(), default=0, help="determines the order and the split (default: %(default)s)")
    add("--workers", type=whole(0), metavar="N", help="processes (default: one per core); 0: only this one")
    add("--overwrite", action="store_true", help="replace shards in OUT of another source or other annotations")
    pack.set_defaults(run=_pack)


def _add_label_maps(add: Any) -> None:
    """Add options for label maps, which give every pixel a class."""
    add(
        "--labels",
        metavar="LABELS",
        help="also pack label maps (PNG or TIFF of 8 or 16 bits, gray or palette): their folder, with files named like "
        "the images; of a list, its column of them; of shards, the member, such as mask.png. The classes are those "
        "of --classes-file",
    )
    add(
        "--colors",
        "--colours",
        type=file_path,
        metavar="TABLE",
        help="CSV with the columns r, g, b, class: label maps are colors; or with value, class, for other numbers. "
        "The class ignore means none",
    )
    add(
        "--ignore",
        type=whole(0, 65535),
        metavar="VALUE",
        help="value of pixels without a class in the label maps, often 255 (default: every value must be a class)",
    )
    add(
        "--zero-is-ignore",
        action="store_true",
        help="in the label maps 0 means no class, and 1 is the first class, as in ADE20K",
    )


def _add_objects(add: Any) -> None:
    """Add options for objects: boxes with categories, and masks."""
    add(
        "--coco",
        metavar="FILE.json",
        help="also pack the objects of the images, boxes and masks: annotations in COCO's JSON, while SRC is the "
        "folder of the images. Objects that cannot be used are counted by reason in OUT/objects.jsonl",
    )
    add(
        "--boxes",
        metavar="FILE.csv",
        help="the same from a CSV with a row per box: image_path, xmin, ymin, xmax, ymax, label; or image, x, y, "
        "width, height, label",
    )
    add("--voc", metavar="FOLDER", help="the same from the XML files of Pascal VOC")


def _pack(arguments: argparse.Namespace) -> int:
    from swinv2_train.cli.data_display import Progress, broken_lines, label_lines, object_lines, print_table
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.pack_entries import grouped, problem_name

    if "/" in arguments.split or arguments.split.startswith(".") or not arguments.split:
        raise DataError(f"--split {arguments.split!r} cannot be the start of a file name")
    if arguments.eval_share and arguments.split == "eval":
        raise DataError("--split eval and --eval-share would write the same shards")
    video = video_packing(arguments)
    if arguments.quality and not (arguments.resize or arguments.tile):
        raise DataError("--quality applies to images that --resize shrinks or --tile cuts: add one of the two")
    tiling = _tiling(arguments)
    found = _found(arguments)
    if not (arguments.resize or arguments.tile or arguments.short_side):
        _check_room(found, arguments.out)
    writable("OUT", arguments.out)
    loading("swinv2-data", f"the decoders for {counted(len(found.entries), found.main, ',')}")

    from swinv2_train.data.pack import BROKEN_FILE, OBJECTS_FILE, PackOptions, PackRun, pack
    from swinv2_train.data.parallel import available_cores

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
        tile=tiling,
        video=video,
    )
    with Progress() as progress:
        report = pack(
            found,
            arguments.out,
            options,
            split=arguments.split,
            eval_share=arguments.eval_share,
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
    for line in label_lines([(problem_name(one), one["reason"]) for one in report.label_problems]):
        print(line, file=sys.stderr)
    for line in object_lines(report.cleaning):
        print(line, file=sys.stderr)
    if found.labels is not None or found.objects is not None:  # images without a label map are listed by a warning
        for line in broken_lines(grouped(report.broken[len(found.refused) :])):
            print(line, file=sys.stderr)
    if report.cleaning.lost:
        print(f"some objects were dropped: see {arguments.out / OBJECTS_FILE}", file=sys.stderr)
    if report.broken:
        print(_skipped(report.broken, found, arguments.out / BROKEN_FILE), file=sys.stderr)
    return 0 if report.complete else 1


def _found(arguments: argparse.Namespace) -> Source:
    """Find the images or videos to pack. Raises DataError."""
    from swinv2_train.data.pack_sources import open_source
    from swinv2_train.data.pack_video_sources import open_videos

    where = {"classes": arguments.classes, "seed": arguments.seed, "out": arguments.out}
    if arguments.video:
        found = open_videos(arguments.source, class_names=arguments.class_names, **where)
        check_fps(arguments, found)
        return found
    labels, objects = _label_maps(arguments), _objects(arguments)
    names = None if labels or objects else arguments.class_names
    content = {"image": arguments.image, "labels": labels, "objects": objects}
    return open_source(arguments.source, class_names=names, **where, **content)


def _skipped(broken: list[dict[str, str]], found: Source, where: Path) -> str:
    from swinv2_train.data.pack_entries import counted_problems

    what, one = counted_problems(broken, found.main), len(broken) == 1
    if found.labels is None and found.objects is None:
        what += " is broken and" if one else " are broken and"
    return f"{what} {'was' if one else 'were'} skipped: see {where}"


def _tiling(arguments: argparse.Namespace) -> Tiling | None:
    """Return the tiles that images are cut into. Raises DataError for options that exclude each other."""
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.tiling import Tiling

    if arguments.tile is None:
        if arguments.overlap is not None:
            raise DataError("--overlap is that of tiles: add --tile PIXELS")
        return None
    if arguments.resize:
        raise DataError("--tile keeps the size of pixels, and --resize shrinks images: use one of the two")
    overlap = arguments.overlap or 0
    if 2 * overlap > arguments.tile:
        raise DataError(f"--overlap {overlap} must be at most half of --tile {arguments.tile}")
    return Tiling(arguments.tile, overlap)


def _label_maps(arguments: argparse.Namespace) -> LabelMaps | None:
    """Return the label maps to pack. Raises DataError if their options are incomplete."""
    from swinv2_train.data.class_names import read_class_names
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.label_pairs import LabelMaps
    from swinv2_train.data.label_rules import read_rules

    if arguments.labels is None:
        for option in ("colors", "ignore", "zero_is_ignore"):
            if getattr(arguments, option) not in (None, False):
                raise DataError(f"--{option.replace('_', '-')} is for label maps: add --labels LABELS")
        return None
    names = None if arguments.class_names is None else read_class_names(arguments.class_names, label_maps=True)
    rules = read_rules(names, arguments.colors, arguments.ignore, zero_is_ignore=arguments.zero_is_ignore)
    return LabelMaps(arguments.labels, rules)


def _objects(arguments: argparse.Namespace) -> ObjectsOption | None:
    """Return the annotations of objects to pack. Raises DataError if there are two kinds."""
    from swinv2_train.data.errors import DataError
    from swinv2_train.data.pack_objects import READERS, ObjectsOption
    from swinv2_train.data.sources import MANIFEST_SUFFIX

    given = [kind for kind in READERS if getattr(arguments, kind) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise DataError(f"--{given[0]} and --{given[1]} both name objects: use one of the two")
    # With label maps, --classes-file has the names of their classes, and the manifest of an earlier split has both.
    named = arguments.class_names
    names = named if named is not None and (arguments.labels is None or named.name.endswith(MANIFEST_SUFFIX)) else None
    return ObjectsOption(given[0], getattr(arguments, given[0]), names)


def _check_room(found: Source, out: Path) -> None:
    """Check that the images fit onto the disk, as far as an earlier command has not packed them.

    Raises:
        CheckpointError: if they do not.
    """
    from swinv2_train.checkpoint.disk import check_space

    held = sum(path.stat().st_size for path in out.glob("*.tar"))
    shrink = "--resize" if found.main == "image" else "--short-side"
    hint = f"remove other files on this disk, choose another OUT, or shrink the {found.main}s with {shrink}"
    check_space(out, max(0, found.num_bytes - held), hint)
