"""Arguments and texts that several commands of `swinv2-data` share."""

from __future__ import annotations

import argparse
from typing import Any

from swinv2_train.cli.values import background, numbers, whole
from swinv2_train.cli.weight_arguments import add_cache

STATUS = (
    "exit status: 0 all is well; 1 done, but some images or labels were skipped or cannot be used, or it failed; "
    "2 usage error; 130 interrupted"
)


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names shards, and the options of their cache."""
    parser.add_argument(
        "shards",
        metavar="SHARDS",
        nargs="+",
        help="a tar, a directory, a pattern such as 'x-{000000..000012}.tar', a URL",
    )
    add_cache(parser)


def add_reading(add: Any, purpose: str) -> None:
    """Add options for reading images."""
    add(
        "--background",
        type=background,
        default="white",
        metavar="COLOR",
        help="color behind transparent pixels, as data.background, for mean and standard deviation "
        f"{purpose}: white, black, drop (ignore alpha), or numbers from 0 to 1 such as 0.5,0.5,0.5 "
        "(default: %(default)s)",
    )
    add(
        "--nodata",
        type=numbers,
        metavar="VALUE",
        help="stored value of pixels without data, as data.nodata, or one per channel such as 0,0,-9999; NaN always is "
        "(default: the tag GDAL_NODATA of a GeoTIFF)",
    )
    add_image(add)


def add_image(add: Any) -> None:
    """Add options that select the image of a sample."""
    add(
        "--image",
        metavar="KEY",
        help="for samples with several images in shards, read this member, such as left.png "
        "(default: the alphabetically first one without a dot)",
    )
    add(
        "--max-pixels",
        type=whole(1),
        default=200_000_000,
        metavar="N",
        help="larger images are broken (default: %(default)s)",
    )
