"""Ranks that are threads, for tests of collective code in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from swinv2_train.checkpoint.fragment import Fragment


class ThreadRanks:
    """One rank of several; `gather` and `broadcast` as in `swinv2_train.engine.ranks.Ranks`."""

    def __init__(self, rank: int, world_size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._board, self._barrier = rank, world_size, board, barrier

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait()
        values = list(self._board)
        self._barrier.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


def on_ranks(world_size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Run `work` on that many ranks and return what each gave, or the exception it raised."""
    board, barrier = [None] * world_size, threading.Barrier(world_size, timeout=30)

    def run(rank: int) -> Any:
        try:
            return work(ThreadRanks(rank, world_size, board, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


SHAPES = {"encoder.weight": (7, 5), "encoder.bias": (5,), "decoder.weight": (3, 2, 2)}


def full_tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Weight and moments of every parameter, flattened."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            kind: torch.randn(torch.Size(shape).numel(), generator=generator)
            for kind in ("weight", "exp_avg", "exp_avg_sq")
        }
        for name, shape in SHAPES.items()
    }


def shards(tensors: dict[str, dict[str, torch.Tensor]], rank: int, world_size: int) -> list[Fragment]:
    """The pieces of a rank when all parameters are flattened into one buffer and cut evenly, as ZeRO does."""
    total = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    size = -(-total // world_size)
    low, high, offset, pieces = rank * size, (rank + 1) * size, 0, []
    for name, shape in SHAPES.items():
        count = torch.Size(shape).numel()
        start, stop = max(low, offset) - offset, min(high, offset + count) - offset
        if start < stop:
            pieces.append(
                Fragment(name, shape, start, **{kind: flat[start:stop] for kind, flat in tensors[name].items()})
            )
        offset += count
    return pieces
