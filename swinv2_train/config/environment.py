"""Values of a config that come from the environment, `${oc.env:NAME}`: stored as they were written, never resolved.

In memory a config holds what the expression resolved to. The text of a config holds the expression, and every process
that reads it, such as a rank on another host, resolves it again. In everything that is shown the expression replaces
the value; see `swinv2_train.redact`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from swinv2_train.redact import hide

_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^\s,}]+)[^}]*\}")
_NAMES_OF_PLACES = ("run.dir", "run.name", "sweep.dir", "sweep.name", "sweep.job")
"""Keys that name directories of the run: everyone sees these, and paths below them must stay usable."""
_ATTRIBUTE = "_unresolved"


def environment_names(text: str) -> list[str]:
    """Return the names of the variables that a text of a config reads from the environment."""
    return _FROM_ENVIRONMENT.findall(text)


def remember(config: Any, raw: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Note in a config which of its values depend on the environment, and hide these from now on.

    Args:
        raw: the config as plain data, with its expressions.
        resolved: the same with their values, of the types of the schema.
    """
    values = dict(_leaves(resolved))
    found: dict[str, tuple[Any, Any]] = {}
    secrets: set[str] = set()
    pending = {key: value for key, value in _leaves(raw) if "${" in str(value)}
    for key, value in pending.items():
        for expression in _FROM_ENVIRONMENT.finditer(str(value)):
            secret = os.environ.get(expression[1], "")
            if key not in _NAMES_OF_PLACES and _is_text(values[key]) and not _is_word(secret, raw):
                hide(secret, f"${{oc.env:{expression[1]}}}")
            secrets.add(secret)
            found[key] = (value, values[key])
    for key, value in pending.items():  # what repeats such a value by another expression
        if any(secret and secret in str(values[key]) for secret in secrets):
            found[key] = (value, values[key])
    setattr(config, _ATTRIBUTE, found)


def _is_text(value: Any) -> bool:
    return any(isinstance(item, str) for item in (value if isinstance(value, list) else [value]))


def _is_word(value: str, raw: dict[str, Any]) -> bool:
    """Return whether a value is a word of the config itself: replacing it everywhere would garble keys and choices."""
    plain = dict(_leaves(raw))
    return value in ("true", "false", "null", *plain.values()) or any(value in key for key in plain)


def stored(config: Any, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return the values that the text of a config cannot hold as they are, by dotted key, each as the text holds it.

    Values that depend on the environment are stored as their expressions. In all others, an expression is escaped: it
    was text when the config was composed, and must be text when the config is read.

    Args:
        values: the config as plain data.
    """
    found: dict[str, tuple[Any, Any]] = getattr(config, _ATTRIBUTE, {})
    for key, value in _leaves(values):
        expression, before = found.get(key, (None, None))
        if expression is not None and str(value) == str(before):  # as it was read; in a file a number may be text
            yield key, expression
        elif "${" in str(value):
            yield key, _escaped(value)


def without_missing(values: Any) -> Any:
    """Return plain data of a config in which expressions of variables that are not set are plain text.

    So a config can be looked at where its variables are not set.
    """
    if isinstance(values, dict):
        return {key: without_missing(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_missing(value) for value in values]
    if isinstance(values, str) and any(
        name not in os.environ and "," not in expression[0]
        for expression in _FROM_ENVIRONMENT.finditer(values)
        for name in [expression[1]]
    ):
        return _escaped(values)
    return values


def _escaped(value: Any) -> Any:
    """Return a value whose expressions are plain text for OmegaConf, with the backslashes before them."""
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key; a list is one value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
