"""Converters of the texts of a command line. Each raises ValueError with a clause such as "must be at least 1"."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.override_text import plain_text, split_list
from swinv2_train.config.paths import user_path

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_FASTEST = 1000
"""Frames per second."""
_SIZE = re.compile(r"([\d.]+)\s*([kmg]?i?)b?")


def whole(lowest: int | None = None, highest: int | None = None) -> Callable[[str], int]:
    """Return a converter for integers between two bounds, both included; None: no bound."""
    bounds = "" if lowest is None else f" of at least {lowest}" if highest is None else f" from {lowest} to {highest}"

    def convert(text: str) -> int:
        digits = text.strip().removeprefix("-")
        number = int(text) if digits.isascii() and digits.isdecimal() else None
        if number is None or (lowest is not None and number < lowest) or (highest is not None and number > highest):
            raise ValueError(f"must be an integer{bounds}")
        return number

    return convert


def wholes(text: str) -> list[int]:
    """Convert a comma-separated list of integers above 0."""
    return [whole(1)(part) for part in text.strip("[]").split(",")]


def number(text: str) -> float:
    """Convert a number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def numbers(text: str) -> list[float]:
    """Convert a comma-separated list of numbers."""
    return [number(part) for part in text.strip("[]").split(",")]


def above_zero(text: str) -> float:
    """Convert a number above 0."""
    if not (value := number(text)) > 0:
        raise ValueError("must be a number above 0")
    return value


def fps(text: str) -> float:
    """Convert a number of frames per second."""
    if not 0 < (value := number(text)) <= _FASTEST:
        raise ValueError(f"must be above 0 and at most {_FASTEST}")
    return value


def fraction(text: str) -> float:
    """Convert a number between 0 and 1, both excluded."""
    if not 0 < (value := number(text)) < 1:
        raise ValueError("must be between 0 and 1")
    return value


def part(text: str) -> float:
    """Convert a number above 0 and at most 1."""
    if not 0 < (value := number(text)) <= 1:
        raise ValueError("must be above 0 and at most 1")
    return value


def size(text: str) -> int:
    """Convert a number of bytes with or without a unit, such as 500000000, 500MB, or 256MiB."""
    match = _SIZE.fullmatch(text.strip().lower())
    try:
        found = int(float(match[1]) * _UNITS[match[2]]) if match else None
    except (ValueError, KeyError):
        found = None
    if found is None:
        raise ValueError("is not a size: write 500000000, 500MB or 256MiB")
    if found < 1:
        raise ValueError("must be above 0")
    return found


def file_path(text: str) -> Path:
    """Convert a path, with its ~ expanded: shells do not expand it after name=."""
    try:
        return user_path(text)
    except ConfigError as error:
        raise ValueError(error.hint.removeprefix(f"{text}: ")) from None


def switch(text: str) -> bool:
    """Convert true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def background(text: str) -> str | list[float]:
    """Convert a color behind transparent pixels, as `data.background`: a word, or a number from 0 to 1 per channel."""
    if text in ("white", "black", "drop"):
        return text
    if text == "mean":
        raise ValueError("works only for data.background: the mean is being measured here")
    found = numbers(text)
    if not all(0 <= each <= 1 for each in found):
        raise ValueError("must be numbers from 0 to 1")
    return found


def listed(text: str) -> list[str]:
    """Convert a list in brackets, or a single value; quotes of Hydra's grammar are removed."""
    if text.startswith("[") and text.endswith("]"):
        return [part for each in split_list(text[1:-1]) if (part := plain_text(each))]
    return [plain_text(text)]
