"""The item that each decoding process is working on, in memory that outlives the process, to name it if it dies."""

from __future__ import annotations

import multiprocessing

_NONE = -1
_own: tuple[CurrentItems, int] | None = None


class CurrentItems:
    """A number for each of `count` processes. Pass it to a process when it starts, not later."""

    def __init__(self, count: int) -> None:
        self._numbers = multiprocessing.get_context("forkserver").RawArray("q", [_NONE] * count)

    def take(self, process: int) -> None:
        """Let `working_on` in this process write the number of process `process` of the pool."""
        global _own
        _own = self, process

    def of(self, process: int) -> int | None:
        """Return the item of a process; None if it has none."""
        number = self._numbers[process]
        return None if number == _NONE else number

    def all(self) -> list[int]:
        """Return the items of all processes that have one."""
        return [number for number in self._numbers if number != _NONE]


def working_on(item: int | None) -> None:
    """Record the item that this process works on; None: it waits. Does nothing in a process without a pool."""
    if _own is not None:
        numbers, process = _own
        numbers._numbers[process] = _NONE if item is None else item
