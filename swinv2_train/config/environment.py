"""Config values from the environment, `${oc.env:NAME}`: stored as expressions, never resolved.

In memory, a config contains the resolved value. The text of a config contains the expression, and every process that
reads it, such as a rank on another host, resolves it again. Everything that is shown contains the expression instead of
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
"""Keys of the run's directories: they are not hidden, because paths below them must stay usable."""
_ATTRIBUTE = "_unresolved"


def environment_names(text: str) -> list[str]:
    """Return the names of the environment variables that a config text reads."""
    return _FROM_ENVIRONMENT.findall(text)


def remember(config: Any, raw: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Record which values of a config depend on the environment, and hide these values from now on.

    Args:
        raw: the config as plain data, with its expressions.
        resolved: the same data with resolved values, in the types of the schema.
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
    for key, value in pending.items():  # values that refer to such a key by another expression
        if any(secret and secret in str(values[key]) for secret in secrets):
            found[key] = (value, values[key])
    setattr(config, _ATTRIBUTE, found)


def _is_text(value: Any) -> bool:
    return any(isinstance(item, str) for item in (value if isinstance(value, list) else [value]))


def _is_word(value: str, raw: dict[str, Any]) -> bool:
    """Return whether a value occurs in the config itself; replacing it everywhere would garble keys and choices."""
    plain = dict(_leaves(raw))
    return value in ("true", "false", "null", *plain.values()) or any(value in key for key in plain)


def stored(config: Any, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values that a config text cannot contain unchanged, as (dotted key, text to store).

    Values that depend on the environment are stored as their expressions. In all other values, expressions are escaped:
    they were plain text when the config was composed and must still be plain text when it is read.

    Args:
        values: the config as plain data.
    """
    found: dict[str, tuple[Any, Any]] = getattr(config, _ATTRIBUTE, {})
    for key, value in _leaves(values):
        expression, before = found.get(key, (None, None))
        if expression is not None and str(value) == str(before):  # unchanged; in a file a number may be text
            yield key, expression
        elif "${" in str(value):
            yield key, _escaped(value)


def without_missing(values: Any) -> Any:
    """Return a config's plain data with expressions of unset variables as plain text.

    This allows inspecting a config on a machine where its variables are not set.
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
    """Return a value with its expressions, and the backslashes before them, escaped for OmegaConf."""
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value by its dotted key; a list counts as one value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
