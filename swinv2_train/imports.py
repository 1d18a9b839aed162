"""Imports of large packages: without the garbage collector, and with few requests to the file system."""

from __future__ import annotations

import atexit
import functools
import gc
import os.path
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_MANY_MODULES = 100


@contextmanager
def lean_imports() -> Iterator[None]:
    """Save time, as a context or decorator, in code that imports torch, DeepSpeed, or the like.

    Their imports make a million objects, all of which stay. Python would search them for garbage again and again, while
    their number grows and later on, which takes a fifth of the CPU time until the first step. So the collector pauses,
    and objects that many imports have made are also exempt from later collections.

    Torch registers operators with the line that does it. For that, Python resolves the path of each module, with one
    request to the file system per directory on the path: a third of all requests at the start of a rank. So directories
    are resolved once.
    """
    enabled, modules, realpath = gc.isenabled(), len(sys.modules), os.path.realpath
    gc.disable()
    os.path.realpath = _remembering(realpath)
    try:
        yield
    finally:
        os.path.realpath = realpath
        if len(sys.modules) > modules + _MANY_MODULES:
            gc.freeze()
            atexit.register(gc.unfreeze)  # for the last collection, without which nanobind reports leaks
        if enabled:
            gc.enable()


def _remembering(realpath: Callable[..., Any]) -> Callable[..., Any]:
    """Return an equal function that resolves each directory once."""
    resolve_directory = functools.cache(realpath)

    @functools.wraps(realpath)
    def resolve(path: Any, **options: Any) -> Any:
        if options or not isinstance(path, str) or not path.startswith("/") or os.path.normpath(path) != path:
            return realpath(path, **options)
        directory, name = os.path.split(path)
        found = os.path.join(resolve_directory(directory), name)
        return realpath(path) if os.path.islink(found) else found

    return resolve
