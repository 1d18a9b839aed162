"""Imports without the garbage collector."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MANY_MODULES = 100


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Pause the garbage collector, as a context or decorator, for code that imports torch, DeepSpeed, or the like.

    Their imports make a million objects, all of which stay. Python would search them for garbage again and again, while
    their number grows and later on, which takes a fifth of the CPU time until the first step. So objects that many
    imports have made are also exempt from later collections.
    """
    enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules + _MANY_MODULES:
            gc.freeze()
            atexit.register(gc.unfreeze)  # for the last collection, without which nanobind reports leaks
        if enabled:
            gc.enable()
