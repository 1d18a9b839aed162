"""Command lines of plain `key=value` items: a few options of the command, and changes to the model
(`model.window=24`); and a parser for commands that have other arguments too.

Torch-free, like every command until its arguments are known.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.override_text import plain_text, split_list
from swinv2_train.config.overrides import refuse_repeated
from swinv2_train.exit_codes import WRONG_USE
from swinv2_train.redact import redact

SECTIONS = ("model", "data", "task")
"""Sections of the config that can be changed for finished weights."""
_OPTION_OF = {
    "data.shards": "data",
    "data.eval_shards": "data",
    "data.num_workers": "workers",
    "data.cache_dir": "cache_dir",
    "data.cache_gib": "cache_gib",
}
"""Config keys that are options of commands for finished weights."""
_OF_TRAINING = (
    "data.max_broken_share", "data.expected_samples", "data.prefetch_batches",
    "data.order", "data.lanes", "data.shuffle_samples", "data.block_samples",
    "data.augment.scale", "data.augment.ratio", "data.augment.hflip", "data.augment.vflip",
)  # fmt: skip
"""Config keys that would have no effect there."""


class Once(argparse.Action):
    """Store a value, but reject a second use of the option: its first value would be silently ignored."""

    given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if option_string is not None and self.given:
            parser.error(f"{option_string} is set more than once; set it once")
        self.given = option_string is not None
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser that reports a usage error in one sentence, and that accepts every option at most once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kind in (None, "store"):
            self.register("action", kind, Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as usual; options of an earlier command line in this process do not count as used."""
        for action in self._actions:
            if isinstance(action, Once):
                action.given = False
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        """Exit with one sentence instead of the complete usage."""
        self.exit(WRONG_USE, f"{self.prog}: {redact(message)}; see {self.prog} --help\n")


def split_items(items: Sequence[str], known: Mapping[str, Callable[[str], Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the converted options among the items, and the other items, which change the config.

    Args:
        known: for each option, a function that converts its text or raises ValueError with a clause such as "must be
            true or false".

    Raises:
        ConfigError: for an item that is neither, and for a repeated key.
    """
    refuse_repeated(items)
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
        elif _OPTION_OF.get(key) in known:
            raise ConfigError(key, text, f"write {_OPTION_OF[key]}={text} here")
        elif key in _OF_TRAINING or key in _OPTION_OF:
            raise ConfigError(key, text, "applies only to training, and has no effect here")
        elif "." in key and key.partition(".")[0] in SECTIONS:
            overrides.append(item)
        else:
            match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {match[0]}?" if match else f"use one of {', '.join(known)}"
            raise ConfigError(key, text, f"unknown option; {hint}")
    return options, overrides


def required(options: Mapping[str, Any], key: str, meaning: str) -> Any:
    """Return a required option.

    Raises:
        ConfigError: if it is missing.
    """
    if options.get(key) in (None, ""):
        raise ConfigError("", key, f"{key}= is missing: {meaning}")
    return options[key]


def whole(lowest: int) -> Callable[[str], int]:
    """Return a converter for integers of at least `lowest`."""

    def convert(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < lowest:
            raise ValueError(f"must be an integer of at least {lowest}")
        return int(text)

    return convert


def wholes(text: str) -> list[int]:
    """Convert a comma-separated list of integers above 0."""
    return [whole(1)(part.strip()) for part in text.strip("[]").split(",")]


def above_zero(text: str) -> float:
    """Convert a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError("must be a number above 0")
    return value


def switch(text: str) -> bool:
    """Convert true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def one_of(choices: Collection[str]) -> Callable[[str], str]:
    """Return a converter for one of several words."""

    def convert(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    convert.choices = tuple(choices)  # type: ignore[attr-defined] # for completion
    return convert


def shards(text: str) -> str | list[str]:
    """Convert a path, pattern, or URL of shards, or a list of these in brackets."""
    if text.startswith("[") and text.endswith("]"):
        return [plain_text(part) for part in split_list(text[1:-1])]
    return plain_text(text)
