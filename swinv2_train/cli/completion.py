"""Completion of command lines in bash, zsh, and fish, with argcomplete: options, subcommands, and KEY=VALUE items.

The shell runs the command itself with `_ARGCOMPLETE` set on every Tab, so this module imports nothing slow, and
argcomplete only if completion is requested.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from swinv2_train.cli.arguments import ITEM, SECTIONS, Once, Parser
from swinv2_train.config.choices import CHOICES
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import conf_dir, schema_keys
from swinv2_train.config.schema import Config
from swinv2_train.config.section import flat
from swinv2_train.config.tasks import TASK_SECTIONS

Completer = Callable[..., list[str]]
"""Called with `prefix`, the word so far, and `parsed_args`; returns complete words."""
_OF_OTHERS = ("pipeline", "hydra")
"""Folders of conf/ that are not for the overrides of a run."""


def offer(parser: Parser, completer: Completer | None = None) -> None:
    """If a shell requests completions, print them and exit; otherwise do nothing.

    Args:
        parser: the complete parser of the command.
        completer: for its positional arguments; by default, paths and the names of the arguments.
    """
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete
    from argcomplete.finders import safe_actions

    safe_actions.add(Once)  # argcomplete calls only known actions; values of others would be missing
    for command in _commands(parser):
        for action in command._actions:
            if not action.option_strings and not action.choices:
                action.completer = completer or _item_words(command)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=_path_words)


def _commands(parser: Parser) -> Iterator[Parser]:
    """Yield the parsers of the subcommands, or that of a command without any."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in inner:
        yield from action.choices.values()
    if not inner:
        yield parser


def run_words(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the overrides of `swinv2-train`: `+experiment=NAME`, groups, config keys, values."""
    places = _places(parsed_args)
    groups = _groups(places)
    key, equals, value = prefix.partition("=")
    if equals:
        names = _names(places, key.lstrip("+")) if key in groups else []
        return _values(key, names) or _values_of_key(key, value)
    return _keys(prefix, [*groups, *_leaves()])


def pipeline_words(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the items of `swinv2-pipeline`: `status`, `pipeline=NAME`, keys for all stages and for one."""
    key, equals, value = prefix.partition("=")
    if equals:
        if key in ("pipeline", "experiment"):
            return _values(key, _names(_places(parsed_args), key))
        return _values_of_key(key, value)
    if "status" in (getattr(parsed_args, "items", None) or []):
        return [*_keys(prefix, ["pipeline"]), *_path_words(prefix)]
    stage = re.match(r"stages\.[^.]+\.", prefix)
    inside = [stage[0] + leaf for leaf in _leaves()] if stage else []
    return [*_keys(prefix, ["pipeline", "dir", "experiment", "launcher", *_leaves(), *inside]), "status"]


def _item_words(parser: Parser) -> Completer:
    """Return a completer of paths, of the arguments by name, and of config keys if the command can change them."""
    options = parser.named()
    sections = SECTIONS if any(action.metavar == ITEM for action in parser._actions) else ()

    def words(prefix: str, **_: object) -> list[str]:
        key, equals, value = prefix.partition("=")
        if equals:
            known = options.get(key.replace("-", "_"))
            words = known.choices or (("true", "false") if known.nargs == 0 else ()) if known is not None else ()
            return _values(key, list(words)) or _values_of_key(key, value)
        inside = [leaf for leaf in _leaves() if leaf.partition(".")[0] in sections]
        return [*_keys(prefix, [*options, *inside]), *_path_words(prefix)]

    return words


def _places(parsed_args: argparse.Namespace) -> list[Path]:
    """Return the directories of the user's configs and of the built-in ones."""
    given = getattr(parsed_args, "config_dir", None)
    try:
        return [place for place in (given, conf_dir()) if place and Path(place).is_dir()]
    except ConfigError:  # a broken installation; the command itself reports it
        return []


def _groups(places: Collection[Path]) -> list[str]:
    """Return the config groups in command-line syntax: with a plus if the defaults of config.yaml do not name them."""
    chosen = re.findall(r"^ *- (\w+):", (conf_dir() / "config.yaml").read_text(), re.MULTILINE) if places else []
    names = {path.name for place in places for path in Path(place).iterdir() if path.is_dir()}
    return sorted(name if name in chosen else f"+{name}" for name in names.difference(_OF_OTHERS))


def _names(places: Collection[Path], group: str) -> list[str]:
    if "/" in group or not group:
        return []
    return sorted({path.stem for place in places for path in (Path(place) / group).glob("*.yaml")})


def _leaves() -> list[str]:
    """Return every config key that has a value."""
    keys = list(dict.fromkeys(schema_keys()))
    sections = {key.rpartition(".")[0] for key in keys}
    return [key for key in keys if key not in sections]


def _keys(prefix: str, keys: Collection[str]) -> list[str]:
    # Without a letter, the hundreds of dotted keys would hide all other words.
    return [f"{key}=" for key in keys if key.startswith(prefix) and (prefix or "." not in key)]


def _values(key: str, values: Collection[str]) -> list[str]:
    return [f"{key}={value}" for value in values]


def _values_of_key(key: str, value: str) -> list[str]:
    """Return true and false for a switch, the accepted values of a key that has only a few, else paths."""
    leaf = re.sub(r"^(\+|stages\.[^.]+\.)", "", key)
    if leaf in CHOICES:
        return _values(key, ["null" if choice is None else str(choice) for choice in CHOICES[leaf]])
    defaults = flat(Config()) | {name: item for task in TASK_SECTIONS.values() for name, item in _task(task).items()}
    if isinstance(defaults.get(leaf), bool):
        return _values(key, ("true", "false"))
    return _values(key, _path_words(value))


def _task(section: type) -> dict[str, object]:
    return flat(section(), "task.")


def _path_words(prefix: str, **_: object) -> list[str]:
    """Return files and directories that begin with a path, the latter with a slash at the end."""
    above, slash, start = prefix.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(above + slash) or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    hidden = start.startswith(".")
    shown = [entry for entry in entries if entry.name.startswith(start) and (hidden or entry.name[0] != ".")]
    return [f"{above}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in shown]
