"""What `swinv2-data` shows: a progress bar on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

_LINES = 10


class Progress:
    """`show(name, done, total)` as often as one likes; drawn on stderr, so that stdout keeps the results."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._shown: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, name: str, done: int, total: int) -> None:
        if self._bar is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=total)
            self._bar.update(self._tasks[name], completed=done)
        elif done * _LINES // total > self._shown.get(name, 0):
            self._shown[name] = done * _LINES // total
            print(f"{name}: {done:,} of {total:,}", file=sys.stderr, flush=True)


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Name and value per line, aligned; plain text, so that it can be piped."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print()
