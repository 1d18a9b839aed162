"""Count the file operations of a piece of code under one folder."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

_active: list[tuple[str, Counter[str]]] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.scandir", "os.listdir"):
        _count(event.removeprefix("os."), arguments[0])


def _count(kind: str, place: object) -> None:
    if isinstance(place, (str, bytes, os.PathLike)):
        for folder, counts in _active:
            if os.fsdecode(place).startswith(folder):
                counts[f"{kind} {Path(os.fsdecode(place)).suffix}".strip()] += 1


sys.addaudithook(_audit)


@contextmanager
def operations(folder: Path) -> Iterator[Counter[str]]:
    """Yield a counter of `open`, `stat`, `lstat`, `scandir`, and `listdir`, each with the suffix of the file name."""
    counts: Counter[str] = Counter()
    real = {name: getattr(os, name) for name in ("stat", "lstat")}

    def counting(name: str) -> object:
        def call(path: object, *args: object, **options: object) -> object:
            _count(name, path)
            return real[name](path, *args, **options)

        return call

    _active.append((str(folder), counts))
    try:
        with mock.patch.multiple(os, **{name: counting(name) for name in real}):
            yield counts
    finally:
        _active.pop()
