"""Command lines of all commands: every argument has a name, so `--which best` and `which=best` mean the same, as do
`RUN` and `checkpoint=RUN`. Torch-free, like every command until its arguments are known.
"""

from __future__ import annotations

import argparse
import difflib
import glob
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from swinv2_train.cli.values import listed, switch
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.overrides import refuse_repeated
from swinv2_train.exit_codes import WRONG_USE
from swinv2_train.redact import redact

ITEM = "KEY=VALUE"
"""Metavar of the positional argument that collects config keys."""
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
_KEY = re.compile(r"[A-Za-z_][\w.-]*")


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
    """A parser that accepts every argument by name too, and every option at most once.

    `name=value` sets an option or a positional argument, in any order; `true` and `false` set a switch. A usage error
    is one sentence. A positional argument with the metavar `ITEM` collects the items with other keys.
    """

    takes: Callable[[str], bool] = staticmethod(lambda item: False)
    """Returns whether an item with an unknown key is a positional argument nevertheless."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._spelled: dict[str, str] = {}
        for kind in (None, "store"):
            self.register("action", kind, Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as usual, after every argument has been put in its place."""
        for action in self._actions:
            if isinstance(action, Once):  # an earlier command line in this process does not count
                action.given = False
        self._add_version()
        given = list(sys.argv[1:] if args is None else args)
        if self._subparsers is not None or "_ARGCOMPLETE" in os.environ:
            return super().parse_known_args(given, namespace)
        line = self._taken_apart(given)
        found, unknown = super().parse_known_args(line.ordered, namespace)
        if line.changes:  # separately, because argparse would add them to a list before them
            setattr(found, next(action.dest for action in self._actions if action.metavar == ITEM), line.changes)
        return found, unknown

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; options may be anywhere in any case."""
        return self.parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        """Exit with one sentence instead of the complete usage."""
        if missing := re.fullmatch(r"the following arguments are required: (?:.*/)?--([\w-]+).*", message):
            message = f"--{missing[1]} (or {missing[1].replace('-', '_')}=) is missing"
        self.exit(WRONG_USE, f"{self.prog}: {redact(message)}; see {self.prog} --help\n")

    def format_help(self) -> str:
        """Return the help text, with a paragraph on the two ways to write an argument."""
        before, self.epilog = self.epilog, "\n\n".join(filter(None, (self._note(), self.epilog)))
        try:
            return super().format_help()
        finally:
            self.epilog = before

    def named(self) -> dict[str, argparse.Action]:
        """Return the arguments that have a public name, by name; some have several."""
        found: dict[str, argparse.Action] = {}
        for action in self._actions:
            hidden = action.help == argparse.SUPPRESS or action.dest in ("help", "version") or action.metavar == ITEM
            if hidden or isinstance(action, argparse._SubParsersAction):
                continue
            found[action.dest] = action
            for name in _aliases(action):
                found.setdefault(name, action)
        return found

    def _note(self) -> str:
        places = [action for action in self.named().values() if not action.option_strings]
        options = [action for action in self._actions if action.dest in self.named() and action.option_strings]
        lines = []
        if places:
            words = [f"{action.dest}={_shown(action)}" for action in dict.fromkeys(places)]
            lines.append(f"by name, in any order: {self.prog} {' '.join(words)} ...")
        if options:
            option = next((action for action in options if action.nargs != 0), options[0])
            value = "true" if option.nargs == 0 else _shown(option)
            dashes = _long(option) if option.nargs == 0 else f"{_long(option)} {value}"
            lines.append(f"options either way:     {dashes} or {option.dest}={value}")
        return "\n".join(lines)

    def _add_version(self) -> None:
        if " " not in self.prog and "--version" not in self._option_string_actions:
            self.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")

    def _taken_apart(self, given: Sequence[str]) -> _Line:
        """Return the parts of a command line, with every positional argument in its place."""
        self._spelled = {}
        line = _Line(self, given)
        asked = any(option in ("-h", "--help", "--version") for option in line.options)
        if not asked:
            try:
                check_changes(line.changes, self.named())
            except ConfigError as error:
                self.error(str(error))
            line.put_in_places([action for action in self._actions if not action.option_strings])
            if line.free:
                hint = f"cannot read {line.free[0]!r}: write key=value" if line.collects else ""
                self.error(hint or f"unrecognized arguments: {' '.join(line.free)}")
        return line

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        convert: Any = self._registry_get("type", action.type, action.type)
        try:
            return convert(text)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise argparse.ArgumentError(None, f"{self._as_given(action, text)}: {error}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        words = ", ".join(map(str, action.choices))
        if isinstance(action, argparse._SubParsersAction):
            match = difflib.get_close_matches(str(value), list(action.choices), n=1, cutoff=0.4)
            hint = f"did you mean {match[0]}?" if match else f"use one of {words}"
            raise argparse.ArgumentError(None, f"{value} is not a command of {self.prog}; {hint}")
        raise argparse.ArgumentError(None, f"{self._as_given(action, value)}: must be one of {words}")

    def _as_given(self, action: argparse.Action, value: Any) -> str:
        default = f"{_long(action)} " if action.option_strings else f"{_shown(action)} "
        return f"{self._spelled.get(action.dest, default)}{value}"


class _Version(argparse.Action):
    """Print the version and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version  # only here, because it is slow

        print(f"{parser.prog} {version('swinv2-train')}")
        parser.exit()


class _Line:
    """A command line, taken apart."""

    def __init__(self, parser: Parser, given: Sequence[str]) -> None:
        self._parser, self._named = parser, parser.named()
        self.options: list[str] = []
        """Options for argparse."""
        self.free: list[str] = []
        """Positional arguments without a name that have no place yet."""
        self._by_name: dict[str, str] = {}
        self._items: list[str] = []
        self._placed: list[str] = []
        places = [action for action in parser._actions if not action.option_strings]
        self.collects = any(action.metavar == ITEM for action in places)
        """True if items with other keys are allowed."""
        self._all_items = self.collects and len(places) == 1
        self._refuse_repeated(given)
        rest = deque(given)
        while rest:
            text = rest.popleft()
            if text == "--":
                (self._items if self._all_items else self.free).extend(rest)
                break
            if text.startswith("-") and text != "-":
                self._add_option(text, rest)
            else:
                self._add(text)

    def put_in_places(self, places: Sequence[argparse.Action]) -> None:
        """Give every positional argument its values; an error ends the command if a required one is missing."""
        places = [action for action in places if action.metavar != ITEM]
        for number, action in enumerate(places, 1):
            kept = sum(later.nargs is None and later.dest not in self._by_name for later in places[number:])
            self._placed += self._values_of(action, kept)

    @property
    def ordered(self) -> list[str]:
        """The same command line for argparse: the options as `--name=value`, then the positional arguments."""
        values = self._items if self._all_items else self._placed
        return [*self.options, *(["--"] if any(value.startswith("-") for value in values) else []), *values]

    def _values_of(self, action: argparse.Action, kept: int) -> list[str]:
        """Return the values of a positional argument; the last `kept` free ones are for those after it."""
        several = action.nargs in ("+", "*")
        if action.dest in self._by_name:
            value = self._by_name[action.dest]
            values = listed(value) if several else [value]
        else:
            values = self.free[: max(0, len(self.free) - kept)] if several else self.free[:1]
            self.free = self.free[len(values) :]
        if (not values or values == [""]) and action.nargs not in ("*", "?"):
            meaning = f": {action.help}" if action.help else ""
            self._parser.error(f"{_shown(action)} (or {action.dest}=) is missing{meaning}")
        return values

    @property
    def changes(self) -> list[str]:
        """Items that must be changes to the model; those of a training run may be any key."""
        return [] if self._all_items else self._items

    def _refuse_repeated(self, given: Sequence[str]) -> None:
        named = [item for item in given if (action := self._action_of(item)) and not _collecting(action)]
        try:
            refuse_repeated([item for item in named if not os.path.lexists(item)])
        except ConfigError as error:
            self._parser.error(str(error))

    def _action_of(self, item: str) -> argparse.Action | None:
        """Return the argument that an item sets by name; None if it sets none."""
        key, equals, _ = item.partition("=")
        return self._named.get(key.replace("-", "_")) if equals else None

    def _add_option(self, text: str, rest: deque[str]) -> None:
        known = self._parser._option_string_actions
        word, equals, value = text.partition("=")
        action = known.get(word)
        if action is None and word.startswith("--"):
            action = self._named.get(word[2:].replace("-", "_"))
        if action is None:
            match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
            self._parser.error(f"unrecognized arguments: {text}{f'; did you mean {match[0]}?' if match else ''}")
        elif action.nargs == 0:
            self._set(action, value if equals else "true", f"{word}=")
        else:
            if not equals:
                if not rest or rest[0] in known:
                    self._parser.error(f"{word} needs a value")
                value = rest.popleft()
            self._set(action, value, f"{word}=" if equals else f"{word} ")

    def _add(self, text: str) -> None:
        key, equals, value = text.partition("=")
        action = self._action_of(text)
        if action is not None and not os.path.lexists(text):
            self._set(action, value, f"{key}=")
        elif self._all_items:
            self._items.append(text)
        elif not equals or not _KEY.fullmatch(key) or _names_files(text) or self._parser.takes(text):
            self.free.append(text)
        elif self.collects:
            self._items.append(text)
        else:
            self._parser.error(unknown_option(key, value, self._named))

    def _set(self, action: argparse.Action, value: str, spelled: str) -> None:
        self._parser._spelled[action.dest] = spelled
        if not action.option_strings:
            if action.dest in self._by_name:
                self._parser.error(f"{action.dest} is set more than once; set it once")
            self._by_name[action.dest] = value
        elif action.nargs != 0:
            self.options.append(f"{_long(action)}={value}")
        else:
            try:
                wanted = switch(value)
            except ValueError as error:
                self._parser.error(f"{spelled}{value}: {error}")
            self.options += [action.option_strings[-1]] if wanted else []


def _collecting(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def _aliases(action: argparse.Action) -> list[str]:
    """Return other names of an argument: `shards`, which the usage line calls SHARDS, or `import` of `--import`."""
    if action.option_strings:
        spelled = [word for word in action.option_strings if word.startswith("--")] or action.option_strings[:1]
        return [word.lstrip("-").replace("-", "_") for word in spelled]
    word = str(action.metavar or action.dest).lower()
    return [word if word.isidentifier() else action.dest]


def _shown(action: argparse.Action) -> str:
    """Return the placeholder of a value for display."""
    if action.metavar is None and action.choices is not None:
        words = list(map(str, action.choices))
        return words[0] if action.option_strings else "{" + ",".join(words) + "}"
    return str(action.metavar or action.dest.upper())


def _long(action: argparse.Action) -> str:
    return next((word for word in action.option_strings if word.startswith("--")), action.option_strings[0])


def _names_files(text: str) -> bool:
    """Return whether an item with an equals sign is a path or a pattern nevertheless."""
    try:
        path = Path(text).expanduser()
        return (
            path.exists()
            or (len(path.parts) > 1 and path.parent.exists())
            or (glob.has_magic(text) and next(glob.iglob(str(path), recursive=True), None) is not None)
        )
    except (OSError, RuntimeError, ValueError):
        return False


def unknown_option(key: str, value: str, known: Collection[str]) -> str:
    """Return the message about an unknown key, with the most similar known one."""
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {match[0]}?" if match else f"use one of {', '.join(known)}"
    return f"{key}={value}: unknown option; {hint}"


def check_changes(items: Sequence[str], known: Collection[str]) -> None:
    """Check the changes to the model on the command line of a command for finished weights.

    Args:
        known: names of the command's arguments, for the message.

    Raises:
        ConfigError: for a repeated key, and for one that cannot be changed.
    """
    refuse_repeated(items)
    for item in items:
        key, _, text = item.partition("=")
        if _OPTION_OF.get(key) in known:
            raise ConfigError(key, text, f"write {_OPTION_OF[key]}={text} here")
        if key in _OF_TRAINING or key in _OPTION_OF:
            raise ConfigError(key, text, "applies only to training, and has no effect here")
        if "." not in key or key.partition(".")[0] not in SECTIONS:
            raise ConfigError("", item, unknown_option(key, text, known))


def shards(texts: Sequence[str]) -> str | list[str]:
    """Return the shards that one or more words name: a path, pattern, or URL, or a list of them."""
    found = [each for text in texts for each in listed(text)]
    return found[0] if len(found) == 1 else found
