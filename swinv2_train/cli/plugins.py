"""The option `--import MODULE`: tasks, transforms, attention backends, and decoders of the user."""

from __future__ import annotations

import argparse

from swinv2_train.config.plugins import as_override, import_installed, import_plugins, modules_in


def add_imports(parser: argparse.ArgumentParser, parts: str = "image decoders, and tasks of weights") -> None:
    """Add the option to a parser.

    Args:
        parts: what the modules may contain, for the help.
    """
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help=f"a Python module of your own with {parts}; repeatable",
    )


def use_imports(arguments: argparse.Namespace) -> None:
    """Import the modules of a command line and those of installed packages, for a command that composes no config.

    Raises:
        ConfigError: naming the module that cannot be imported.
    """
    import_installed()
    import_plugins(_modules(arguments))


def as_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the override that stands for the option."""
    return as_override(_modules(arguments))


def _modules(arguments: argparse.Namespace) -> list[str]:
    return [name for text in arguments.imports for name in modules_in(text)]
