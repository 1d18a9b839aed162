"""Checks of what a program passes, as the commands check their options. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

from swinv2_train.config.checks import one_of
from swinv2_train.config.errors import ConfigError


def at_least(name: str, value: Any, lowest: int) -> None:
    """Raise ConfigError unless a value is an integer of at least `lowest`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ConfigError(name, value, f"must be an integer of at least {lowest}")


def check_device(device: str) -> None:
    """Raise ConfigError for another device than auto, cuda, or cpu."""
    one_of("device", device, ("auto", "cuda", "cpu"))


def check_names(given: Collection[str], known: Collection[str]) -> None:
    """Raise ConfigError if one of the options is not known."""
    for name in given:
        if name not in known:
            raise ConfigError("", name, f"unknown option {name}; use one of {', '.join(known)}")


def check_main_thread() -> None:
    """Raise ConfigError in another thread than the main one, because only that receives the signals that stop a run."""
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("", None, "train() needs the main thread, where Ctrl-C arrives; or start a process for it")
