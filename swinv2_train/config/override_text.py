"""Overrides as users write them, translated into Hydra's grammar one by one.

In that grammar, `=`, `{`, `(`, `~`, an apostrophe, and any letter outside of ASCII need quotes. If the key holds text,
such as a path or shards, a value that Hydra cannot parse is the text itself. Any other such value is an error of this
one override.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.explain import (
    has_default,
    is_choice,
    is_group,
    must_be_list,
    no_such_key,
    options_of,
    schema_fields,
    unknown_choice,
)
from swinv2_train.config.overrides import SHARD_KEYS, key_of

_SEVERAL = "-m sweeps over several values"
_MUST = {
    "int": "must be an integer, in digits",
    "float": "must be a number",
    "bool": "must be true or false",
    "dict": "must be keys and values in braces, such as {key: value}",
}
"""Requirements by the type of a key."""
_TEXT, _TEXTS, _SHARDS = "str", "list[str]", "shards"
_LONGEST_KEY = 100
_PAIRS = {"[": "]", "{": "}", "(": ")"}


def quoted(value: object) -> str:
    """Return a value as a quoted string of Hydra's grammar, in which only quotes and backslashes before them change."""
    text = re.sub(r'(\\*)"', r'\1\1\\"', str(value))
    at_end = text[len(text.rstrip("\\")) :]
    return f'"{text}{at_end}"'


def split_list(text: str) -> list[str]:
    """Return the parts of a text between its commas, without splitting inside brackets, braces, and quotes."""
    parts, closing, quote = [""], [], ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not parts[-1].strip():  # an apostrophe inside a word opens nothing
            quote = letter
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        if letter == "," and not closing and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def plain_text(text: str) -> str:
    """Return a text without the quotes of Hydra's grammar, for options that no grammar reads."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        return text[1:-1]
    return text


def search_path(config_dir: Path | None) -> list[str]:
    """Return the override that adds a directory of the user's own configs."""
    if config_dir is None:
        return []
    place = quoted(f"file://{config_dir.resolve()}")
    return [f"hydra.searchpath=[{place}]"]


def in_grammar(items: Sequence[str], config_dir: Path | None = None, *, several: bool = False) -> list[str]:
    """Return overrides that Hydra can parse, in the same order.

    Args:
        config_dir: a directory of the user's own configs.
        several: True if a value may be several, for a sweep.

    Raises:
        ConfigError: for the first override that cannot be read, or that has several values without a sweep.
    """
    return [_in_grammar(item, config_dir, several) for item in items]


def values_of(items: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the key and the value of each override, such as ("optim.lr", 0.001).

    Raises:
        ConfigError: if one cannot be read.
    """
    for item in in_grammar(items):
        yield key_of(item), _parse(item).value()


def _in_grammar(item: str, config_dir: Path | None, several: bool) -> str:
    name, equals, value = item.partition("=")
    key, deletes = key_of(item), item.startswith("~")
    if not key or not (equals or deletes):
        raise ConfigError("", item, f"cannot read the override {item!r}: {_meant(item, config_dir)}")
    if len(key) > _LONGEST_KEY:  # Hydra looks for a file of this name
        raise ConfigError("", key, f"cannot read the override {item[:_LONGEST_KEY]!r}...: its key is too long")
    if deletes:
        _refuse_deletion(item, key)
        return item
    kind, parsed = _kinds().get(key, ""), _parse(item)
    if parsed is None:
        if _parse(f"{name}=0") is None:
            raise ConfigError(key, value, no_such_key(key))
        return f"{name}={_as_text(key, value, config_dir, several)}"
    if parsed.is_sweep_override():
        if not several:
            raise ConfigError(key, value, _one_value(key, value, config_dir))
    elif _is_unknown(key, parsed.value(), config_dir):
        raise ConfigError(key, value, unknown_choice(key, value, config_dir))
    elif kind in (_TEXT, _SHARDS) and _changes(parsed.value(), value.strip()):
        return f"{name}={quoted(value.strip())}"
    return item


def _is_unknown(group: str, name: Any, config_dir: Path | None) -> bool:
    """Return whether a group has no file of a name; a custom task, for which Hydra knows more names, is left to it."""
    known = not isinstance(name, str) or group == "task" or not is_group(group, config_dir)
    return not known and not is_choice(group, name, config_dir)


def _changes(value: Any, text: str) -> bool:
    """Return whether Hydra reads a text as a number or a switch, in another spelling: 1.10, 1_000, true."""
    return isinstance(value, (bool, int, float)) and str(value) != text


def _as_text(key: str, value: str, config_dir: Path | None, several: bool) -> str:
    """Return the value of an override that Hydra cannot parse, as a quoted string or as a list of them.

    Keys of custom tasks and of other libraries are not known here. Hydra reports a key that does not exist.
    """
    kind, text = _kinds().get(key, ""), value.strip()
    if is_group(key, config_dir):
        raise ConfigError(key, value, unknown_choice(key, text, config_dir))
    if kind not in (_TEXT, _TEXTS, _SHARDS, ""):
        raise ConfigError(key, value, _requirement(key, text))
    if kind in (_TEXTS, _SHARDS) and text[:1] == "[":
        if text[-1:] == "]" and _is_closed(text):
            return f"[{','.join(_element(part) for part in split_list(text[1:-1]))}]"
        if not _is_closed(text):
            raise ConfigError(key, value, "its brackets do not match")
    parts = split_list(text)
    if several and len(parts) > 1:
        each, one = (shlex.quote(f"{key}={one}") for one in (",".join(quoted(part) for part in parts), quoted(text)))
        raise ConfigError(key, value, f"needs quotes in a sweep: {each} is several values, {one} is one")
    return quoted(text)


def _element(text: str) -> str:
    parsed = _parse(f"key={text}")
    return text if parsed is not None and isinstance(parsed.value(), str) and text else quoted(text)


def _is_closed(text: str) -> bool:
    """Return whether every bracket of a text is closed."""
    closing: list[str] = []
    for letter in text:
        if letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif letter in _PAIRS.values() and (not closing or closing.pop() != letter):
            return False
    return not closing


def _requirement(key: str, text: str) -> str:
    """Return the fix of a value that Hydra cannot parse, by the type of the key."""
    kind = _kinds()[key]
    base = re.split(r"[\[ ]", kind)[0]
    if kind.endswith("Config"):
        return "is a section; set one of its keys instead"
    if base in ("int", "float", "bool"):
        return f"{_MUST[base]}, or null" if kind.endswith("| None") else _MUST[base]
    if not _is_closed(text):
        return "its brackets do not match"
    if base == "list":
        return must_be_list(key, text)
    return _MUST.get(base, "must be a number, a word, a list in brackets, or keys and values in braces")


def _one_value(key: str, value: str, config_dir: Path | None) -> str:
    """Return the fix of several values outside of a sweep."""
    kind = _kinds().get(key, "")
    if is_group(key, config_dir):
        return f"use one of them; {_SEVERAL}"
    if kind == _TEXT:
        return f"is several values; one text with a comma is {shlex.quote(f'{key}={quoted(value)}')}, and {_SEVERAL}"
    if re.split(r"[\[ ]", kind)[0] in ("int", "float", "bool") or re.match(r"\w+\(", value):
        return "is several values; set one of them, or add -m, which runs each"
    return f"a list is {shlex.quote(f'{key}=[{value}]')}; {_SEVERAL}"


def _meant(item: str, config_dir: Path | None) -> str:
    """Return the fix of a word that sets nothing."""
    word = item.lstrip("+")
    if word in options_of("experiment", config_dir):
        return f"write +experiment={word}"
    return (
        f"write {item}={'NAME' if is_group(word, config_dir) else 'VALUE'}" if word in _kinds() else "write key=value"
    )


def _refuse_deletion(item: str, key: str) -> None:
    """Reject the removal of a key, because every key has a value; other libraries' own keys may be removed."""
    if key.startswith(("engine.deepspeed.", "hydra.", "hydra/")):
        return
    if is_group(key, None):
        hint = f"choose another file with {key}=NAME" if has_default(key) else f"omit +{key}=NAME"
        raise ConfigError("", item, f"{item}: a group cannot be removed; {hint}")
    if key in _kinds():
        what = "its keys" if _kinds()[key].endswith("Config") else "it"
        raise ConfigError("", item, f"{item}: {key} cannot be removed; set {what} to another value")
    raise ConfigError("", item, f"{item}: {no_such_key(key)}")


@cache
def _kinds() -> dict[str, str]:
    """Return the type of every key, as the schema spells it; str also for optional text."""
    found = {key: str(spec.type) for key, spec in schema_fields()}
    found |= {key: _TEXT for key, kind in found.items() if kind == "str | None"}
    return found | {key: _SHARDS for key in SHARD_KEYS if "." in key}


@lru_cache(maxsize=1024)
def _parse(item: str) -> Any:
    """Return Hydra's parsed override; None if it cannot parse it."""
    from hydra.errors import HydraException

    try:
        return _parser().parse_rule(item, "override")
    except (HydraException, ValueError, RecursionError):  # also numbers of thousands of digits, and as many brackets
        return None


@cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()
