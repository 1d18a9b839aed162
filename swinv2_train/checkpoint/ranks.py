"""Interface to other ranks for saving and loading."""

from __future__ import annotations

from typing import Any, Protocol


class Ranks(Protocol):
    """This process among those that share a checkpoint. Every method is a collective: all ranks must call it."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]: ...
    def broadcast(self, value: Any) -> Any: ...
