"""Import of the user's modules: those of `--import` and `imports`, and those of installed packages.

A package offers its module by an entry point of the group `swinv2_train.plugins`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from swinv2_train.config import own_parts
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks.registry import import_parts

GROUP = "swinv2_train.plugins"
"""Group of the entry points."""
KEY = "imports"


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules of the user and make their tasks and parts known.

    Raises:
        ConfigError: if one cannot be imported, or has neither a task nor a `Plugin`.
    """
    for module in modules:
        if own_parts.is_known(module):
            continue
        if not import_parts(module, KEY) and not own_parts.is_known(module):
            hint = "defines neither a task nor a Plugin (swinv2_train/tasks/README.md)"
            raise ConfigError(KEY, module, hint)


def import_installed() -> list[str]:
    """Import the modules that installed packages offer, and return their names.

    Raises:
        ConfigError: if one cannot be imported, naming its package.
    """
    for module, package in installed().items():
        try:
            import_plugins([module])
        except ConfigError as error:
            hint = f"{error.hint}; it is an entry point of the package {package}: fix or uninstall that"
            raise ConfigError(KEY, module, hint) from error
    return list(installed())


@cache
def installed() -> dict[str, str]:
    """Return the modules of all entry points, each with the name of its package."""
    from importlib.metadata import entry_points

    return {point.module: point.dist.name if point.dist else "?" for point in entry_points(group=GROUP)}


def import_recorded(modules: object) -> list[str]:
    """Import the modules that weights record; return a sentence for each that cannot be imported.

    The weights may be usable without it: their task is imported separately, and transforms serve only training.
    """
    missing = []
    for module in modules if isinstance(modules, list) else ():
        try:
            import_plugins([module])
        except ConfigError as error:
            missing.append(f"the weights were trained with --import {module}, which {error.hint}")
    return missing


def modules_in(text: str) -> list[str]:
    """Return the modules that a text names: one, several in brackets with commas between them, or none: null, []."""
    names = [part.strip(" '\"") for part in text.strip(" []").split(",")]
    return [name for name in names if name not in ("", "null")]


def as_override(modules: Sequence[str]) -> list[str]:
    """Return the override of `imports` that adds modules; none if there are none."""
    return [f"{KEY}=[{','.join(dict.fromkeys(modules))}]"] if modules else []


def without_imports(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (the modules that overrides of `imports` name, the other overrides).

    An override adds to the modules of config files, where any other list would replace the one of the file.
    """
    own = [item for item in overrides if item.lstrip("+").startswith(f"{KEY}=")]
    modules = [name for item in own for name in modules_in(item.partition("=")[2])]
    return list(dict.fromkeys(modules)), [item for item in overrides if item not in own]
