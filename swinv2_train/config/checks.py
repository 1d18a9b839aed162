"""Basic checks for validation, and values derived from a single key."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.config.errors import ConfigError, percent

if TYPE_CHECKING:  # the sections are checked with these functions
    from swinv2_train.config.schema import Config


def resolution(config: Config) -> tuple[int, int]:
    """Return the input size (height, width) in pixels.

    Raises:
        ConfigError: if `data.resolution` is neither a side nor a pair of them.
    """
    value = config.data.resolution
    pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in pair):
        raise ConfigError("data.resolution", value, "must be a number of pixels or a pair [height, width]")
    return pair


def clip_frames(config: Config) -> int:
    """Return the number of frames of a clip; 0 for images.

    Raises:
        ConfigError: if `data.frames` is below 0.
    """
    at_least("data.frames", config.data.frames, 0)
    return config.data.frames


def one_of(key: str, value: Any, options: tuple[Any, ...]) -> None:
    if value not in options:
        raise ConfigError(
            key, value, f"must be one of {', '.join('null' if option is None else str(option) for option in options)}"
        )


def at_least(key: str, value: float, least: float) -> None:
    if not value >= least:  # also rejects nan
        raise ConfigError(key, value, f"must be at least {least}")


def share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(key, value, f"must be a fraction from 0 to 1{percent(value)}")


def check_class_weights(weights: Any, num_classes: int) -> None:
    """Check `task.class_weights`: null, balanced, or a list of one number per class.

    Args:
        num_classes: 0 while it is unknown.

    Raises:
        ConfigError: for anything else.
    """
    if weights is None or weights == "balanced":
        return
    numbers = isinstance(weights, (list, tuple)) and all(
        isinstance(weight, (int, float)) and not isinstance(weight, bool) for weight in weights
    )
    if not numbers:
        fix = "must be null, balanced, or a list with one number per class"
        raise ConfigError("task.class_weights", weights, fix)
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigError("task.class_weights", weights, "must be numbers of at least 0, and not all 0")
    if num_classes and len(weights) != num_classes:
        raise ConfigError(
            "task.class_weights",
            weights,
            f"has {len(weights)} numbers for task.num_classes={num_classes}; set one for each class",
        )


def check_statistics(key: str, values: Sequence[float]) -> None:
    """Check per-channel means or standard deviations of images whose values are in [0, 1].

    Raises:
        ConfigError: if a value is outside that range; the message converts statistics of 8-bit or 16-bit values.
    """
    text = str([float(f"{value:.6g}") for value in values]).replace(" ", "")
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ConfigError(key, text, "must be finite numbers from 0 to 1")
    highest = next((top for top in (1, 255, 65535) if max(values) <= top), None)
    if highest == 1:
        return
    hint = "must be for values from 0 to 1"
    if highest:
        scaled = ",".join(f"{value / highest:.4g}" for value in values)
        hint += f", and these look like statistics of values from 0 to {highest}; divided, they are {key}=[{scaled}]"
    raise ConfigError(key, text, hint)


def check_background(value: Any, channels: int) -> None:
    """Raise ConfigError if `data.background` is not a color for this number of channels."""
    if value is None or isinstance(value, str):
        one_of("data.background", value, (None, "white", "black", "mean", "drop"))
        return
    numbers = value if isinstance(value, list) else []
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) and 0 <= each <= 1 for each in numbers):
        hint = "must be numbers from 0 to 1, such as [0.5,0.5,0.5]; divide values from 0 to 255 by 255"
        raise ConfigError("data.background", value, hint)
    if len(numbers) not in (1, channels):
        hint = f"must be white, black, mean, drop, or one number per channel, model.in_channels={channels}"
        raise ConfigError("data.background", value, hint)


def check_directory(key: str, directory: str | Path, *, written: bool) -> None:
    """Check that a directory exists or can be made; nothing is made.

    Args:
        written: False: nothing will be written, as in a dry run.

    Raises:
        ConfigError: if a file is in its place or above it, or if it cannot be written to.
    """
    path = Path(directory)
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(key, f"{str(directory)[:60]}...", "is too long for the file system") from error
    there = next(place for place in (path, *path.parents) if place == place.parent or os.path.exists(place))
    if not there.is_dir():
        what = "is a file" if there == path else f"cannot be made, because {there} is a file"
        raise ConfigError(key, directory, f"{what}; use another directory")
    if written and not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(key, directory, f"cannot be written to, because {there} is read-only for you")
