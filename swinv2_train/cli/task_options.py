"""Options of `swinv2-predict` that set fields of the task section, for the tasks that have them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.values import above_zero, numbers, whole
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.overrides import refuse_repeated

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.source import WeightSource

_OPTIONS = ("inference", "tile", "overlap", "threshold", "scales", "flip", "hop")
_NEEDS = {
    "inference": "a segmenter",
    "tile": "a detector",
    "threshold": "a detector",
    "hop": "a classifier of videos (task=video)",
}
"""Models that have an option; others need a segmenter or a detector."""


def add_task_options(parser: Parser) -> None:
    """Add the options; without one, the value of the training applies."""
    group = parser.add_argument_group(
        "options for segmenters, detectors, and videos", "the defaults are those of the training"
    )
    add = group.add_argument
    add("--inference", choices=["whole", "slide"], help="of a segmenter: the entire image at once, or sliding windows")
    add("--tile", type=whole(1), metavar="N", help="of a detector: cut images into tiles of N pixels, for large ones")
    add("--overlap", type=_overlap, metavar="SHARE", help="fraction of a window or tile that neighbors share: 0.34")
    add("--threshold", type=_score, metavar="X", help="of a detector: lowest score in pictures and tables: 0.5")
    add("--scales", type=_scales, metavar="X,X,...", help="factors of the image size, averaged: 0.75,1,1.25")
    add("--flip", action="store_true", default=None, help="average with the mirrored image")
    hop_help = "of videos: from the start of a window to that of the next one (default: half a window)"
    add("--hop", type=above_zero, metavar="SECONDS", help=hop_help)


def _overlap(text: str) -> str:
    if not 0 <= numbers(text)[0] < 1:
        raise ValueError("must be at least 0 and below 1")
    return text


def _score(text: str) -> str:
    if not 0 <= numbers(text)[0] <= 1:
        raise ValueError("must be from 0 to 1")
    return text


def _scales(text: str) -> str:
    found = numbers(text)
    if not all(0 < scale < math.inf for scale in found):
        raise ValueError("must be numbers above 0")
    return f"[{','.join(map(str, found))}]"


def with_task_options(
    arguments: argparse.Namespace, check: Callable[[argparse.Namespace], tuple[Config, WeightSource]]
) -> tuple[Config, WeightSource]:
    """Return the config for using weights with these options, which become changes among `arguments.changes`.

    Args:
        check: returns the config for `arguments.changes`.

    Raises:
        ConfigError: if the task does not have an option, it is set twice, or it would have no effect.
    """
    given = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
    config, source = check(arguments)
    keys = config.task.PREDICT_OPTIONS
    for name, value in given.items():
        if name not in keys:
            needed = _NEEDS.get(name, "a segmenter or a detector")
            raise ConfigError(name, value, f"requires {needed}, and {source.path} is a {config.task.name} model")
    if given:
        added = [f"task.{keys[name]}={str(value).lower()}" for name, value in given.items()]
        refuse_repeated([*arguments.changes, *added])
        arguments.changes = [*arguments.changes, *added]
        config, source = check(arguments)
    config.task.check_prediction(given | ({} if arguments.batch is None else {"batch": arguments.batch}))
    return config, source
