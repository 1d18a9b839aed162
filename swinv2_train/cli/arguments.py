"""Command lines of plain `key=value` items: a few options of the command, and changes to the model (`model.window=24`);
and the parser of those that have other arguments as well.

Torch-free, like every command before it knows what it is asked for.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from swinv2_train.config.errors import ConfigError
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
"""Keys of the config that are options where finished weights are used."""
_OF_TRAINING = (
    "data.max_broken_share", "data.expected_samples", "data.shuffle_samples", "data.prefetch_batches",
    "data.augment.scale", "data.augment.ratio", "data.augment.hflip", "data.augment.vflip",
)  # fmt: skip
"""Keys of the config that would change nothing there."""


class Once(argparse.Action):
    """Store a value, and reject an option that is given a second time: its first value would be ignored."""

    given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if option_string is not None and self.given:
            parser.error(f"{option_string} is given more than once; give it once")
        self.given = option_string is not None
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser that answers a usage error in one sentence, and that takes every option at most once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kind in (None, "store"):
            self.register("action", kind, Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as usual; what an earlier command line of this process gave does not count."""
        for action in self._actions:
            if isinstance(action, Once):
                action.given = False
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        """End with one sentence instead of the whole usage."""
        self.exit(WRONG_USE, f"{self.prog}: {redact(message)}; see {self.prog} --help\n")


def split_items(items: Sequence[str], known: Mapping[str, Callable[[str], Any]]) -> tuple[dict[str, Any], list[str]]:
    """The options among the items, converted, and the other items, which change the config.

    Args:
        known: the options, each with what makes a value of its text or raises ValueError with a clause that says what
            it must be.

    Raises:
        ConfigError: for what is neither, and for a key that is given twice.
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
            raise ConfigError(key, text, "is of a training, and would change nothing here")
        elif "." in key and key.partition(".")[0] in SECTIONS:
            overrides.append(item)
        else:
            match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {match[0]}?" if match else f"take one of {', '.join(known)}"
            raise ConfigError(key, text, f"there is no such option; {hint}")
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
