"""Command lines of plain `key=value` items: a few options of the command, and changes to the model (`model.window=24`).

Torch-free, like every command before it knows what it is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from swinv2_train.config.errors import ConfigError

SECTIONS = ("model", "data", "task")
"""Sections of the config that can be changed for finished weights."""
_SHARDS = ("data.shards", "data.eval_shards")


def split_items(items: Sequence[str], known: Mapping[str, Callable[[str], Any]]) -> tuple[dict[str, Any], list[str]]:
    """The options among the items, converted, and the other items, which change the config.

    Args:
        known: the options, each with what makes a value of its text or raises ValueError with a clause that says what
            it must be.

    Raises:
        ConfigError: for what is neither.
    """
    options: dict[str, Any] = {}
    overrides = []
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError("", item, f"cannot read {item!r}: write key=value")
        if key in known:
            try:
                options[key] = known[key](text)
            except ValueError as error:
                raise ConfigError(key, text, str(error)) from None
        elif key in _SHARDS:
            raise ConfigError(key, text, "write data=SHARDS here")
        elif "." in key and key.partition(".")[0] in SECTIONS:
            overrides.append(item)
        else:
            match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            mend = f"did you mean {match[0]}?" if match else f"take one of {', '.join(known)}"
            raise ConfigError(key, text, f"there is no such option; {mend}")
    return options, overrides


def required(options: Mapping[str, Any], key: str, meaning: str) -> Any:
    """An option that must be given.

    Raises:
        ConfigError: if it is not.
    """
    if options.get(key) in (None, ""):
        raise ConfigError("", key, f"{key}= is missing: {meaning}")
    return options[key]


def whole(lowest: int) -> Callable[[str], int]:
    """Whole numbers from `lowest` on."""

    def convert(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < lowest:
            raise ValueError(f"must be a whole number, at least {lowest}")
        return int(text)

    return convert


def wholes(text: str) -> list[int]:
    """Whole numbers above 0, separated by commas."""
    return [whole(1)(part.strip()) for part in text.strip("[]").split(",")]


def above_zero(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError("must be a number above 0")
    return value


def switch(text: str) -> bool:
    """true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def one_of(choices: Collection[str]) -> Callable[[str], str]:
    """One of some words."""

    def convert(text: str) -> str:
        if text not in choices:
            raise ValueError(f"take one of {', '.join(choices)}")
        return text

    return convert


def shards(text: str) -> str | list[str]:
    """A path, pattern or URL of shards, or a list of these in brackets."""
    if text.startswith("[") and text.endswith("]"):
        return [part.strip() for part in text[1:-1].split(",")]
    return text
