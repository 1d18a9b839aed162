"""Parts of the user, which built-in code finds by name: image transforms, attention backends, decoders.

A module of the user lists them in a `Plugin`. Functions are named as `module:function`, so that the module itself needs
neither numpy nor torch. `config/plugins.py` imports these modules.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.image_formats import IMAGE_EXTENSIONS

ATTENTION_BACKENDS = ("reference", "sdpa", "sequential")
"""Names in the table of `models.attention.backends`, listed here because the config does not import torch."""
_NAME = re.compile(r"[A-Za-z]\w*")
_EXTENSION = re.compile(r"[a-z][a-z0-9]*")
_FUNCTION = re.compile(r"[\w.]+:\w+")
_TAKEN_EXTENSIONS = (*IMAGE_EXTENSIONS, "cls", "txt", "json", "tar", "npy", "npz")


@dataclass(frozen=True)
class Decoder:
    """Decoder of one more image format."""

    magic: bytes
    """Bytes at `offset` in every file of the format. They decide, not the name of the file."""
    read: str
    """`module:function` that converts the bytes of a file to an array (H, W) or (H, W, C) of real numbers, upright.

    Values other than uint8 and uint16 need `data.scale`. Whatever it raises breaks the sample, with the message as the
    reason.
    """
    offset: int = 0


@dataclass(frozen=True)
class Plugin:
    """Parts that a module adds, by name. Functions are given as `module:function`."""

    transforms: Mapping[str, str] = field(default_factory=dict)
    """For `data.augment.transform`: (sample, size, augment, rng) -> (C, *size), instead of the crop.

    The result has the type of the sample: uint8 or uint16, or float32 in [0, 1] with `data.scale`.
    """
    attention: Mapping[str, str] = field(default_factory=dict)
    """For `model.attention`: functions with the signature of `models.attention.contract`."""
    decoders: Mapping[str, Decoder] = field(default_factory=dict)
    """By the extension of the files, such as `pgm`; it is also the name of the format."""

    def functions(self) -> Mapping[str, str]:
        """Return all functions by the name of their part."""
        readers = {name: decoder.read for name, decoder in self.decoders.items()}
        return {**self.transforms, **self.attention, **readers}


_plugins: dict[str, tuple[Plugin, ...]] = {}
"""Plugins by the module that lists them."""


def register(module: str, plugins: tuple[Plugin, ...]) -> None:
    """Make the parts of a module known; a module that is known already stays as it is.

    Raises:
        ConfigError: if a name is taken or impossible.
    """
    if module in _plugins:
        return
    listed = [plugin for known in _plugins.values() for plugin in known]
    plugins = tuple(plugin for plugin in plugins if all(plugin is not other for other in listed))
    for plugin in plugins:
        for kind, taken, pattern in (
            ("transforms", (), _NAME),
            ("attention", ATTENTION_BACKENDS, _NAME),
            ("decoders", _TAKEN_EXTENSIONS, _EXTENSION),
        ):
            for name in getattr(plugin, kind):
                owner = next((other for other in _plugins if name in _names(other, kind)), None)
                where = f"{kind} has {name!r}, "
                if name in taken or owner is not None:
                    whose = f"a part of {owner}" if owner else "built in"
                    raise ConfigError("imports", module, f"{where}which is {whose}; rename it")
                if not pattern.fullmatch(name):
                    hint = "lower-case letters and digits" if kind == "decoders" else "letters, digits, and underscores"
                    raise ConfigError("imports", module, f"{where}which is not a name of {hint}")
        for name, function in plugin.functions().items():
            if not isinstance(function, str) or not _FUNCTION.fullmatch(function):
                hint = f"{name} is {function!r}; write 'module:function', such as 'my_parts.{name}:{name}'"
                raise ConfigError("imports", module, hint)
        for name, decoder in plugin.decoders.items():
            if not isinstance(decoder.magic, bytes) or not decoder.magic:
                raise ConfigError("imports", module, f"the decoder {name} needs magic, the bytes that its files have")
    _plugins[module] = plugins


def _names(module: str, kind: str) -> set[str]:
    return {name for plugin in _plugins[module] for name in getattr(plugin, kind)}


def modules() -> list[str]:
    """Return the modules whose parts are known, in the order of their import."""
    return list(_plugins)


def is_known(module: str) -> bool:
    """Return whether a module was imported for its parts."""
    return module in _plugins


def parts(kind: str) -> dict[str, Any]:
    """Return the known parts of a kind (a field of `Plugin`) by name."""
    found: dict[str, Any] = {}
    for plugins in _plugins.values():
        for plugin in plugins:
            found.update(getattr(plugin, kind))
    return found


@cache
def function_of(path: str) -> Callable[..., Any]:
    """Import the function `module:function`.

    Raises:
        ConfigError: if it does not exist.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError("imports", path, f"this part cannot be imported ({error})") from error
