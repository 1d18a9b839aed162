"""Interface to the other ranks that saving and loading need."""

from __future__ import annotations

from typing import Any, Protocol


class Ranks(Protocol):
    """This process among those that share a checkpoint; every method is a collective."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]: ...
    def broadcast(self, value: Any) -> Any: ...
