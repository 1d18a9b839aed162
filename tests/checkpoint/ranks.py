"""Ranks that are threads, for tests of collective code in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.load import load_fragments
from swinv2_train.checkpoint.save import Saved, save


class ThreadRanks:
    """One rank of several; `gather` and `broadcast` as in `swinv2_train.launch.ranks.Ranks`."""

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


def thread_ranks(world_size: int) -> list[ThreadRanks]:
    """A communicator: one end for each rank."""
    board, barrier = [None] * world_size, threading.Barrier(world_size, timeout=30)
    return [ThreadRanks(rank, world_size, board, barrier) for rank in range(world_size)]


def on_ranks(world_size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Run `work` on that many ranks and return what each gave, or the exception it raised."""
    group = thread_ranks(world_size)

    def run(rank: int) -> Any:
        try:
            return work(group[rank])
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


SHAPES = {"encoder.weight": (7, 5), "encoder.bias": (5,), "decoder.weight": (3, 2, 2)}


def full_tensors(seed: int = 0, *, ema: bool = False) -> dict[str, dict[str, torch.Tensor]]:
    """Weight and moments of every parameter, and the average if asked for, flattened."""
    generator = torch.Generator().manual_seed(seed)
    parts = ("weight", "exp_avg", "exp_avg_sq", "ema")[: 4 if ema else 3]
    return {
        name: {part: torch.randn(torch.Size(shape).numel(), generator=generator) for part in parts}
        for name, shape in SHAPES.items()
    }


def blank_tensors(like: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """The same with -1 everywhere."""
    return {name: {part: torch.full_like(flat, -1) for part, flat in parts.items()} for name, parts in like.items()}


def assert_equal(actual: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]) -> None:
    """Check that all tensors are the same to the bit."""
    for name, parts in expected.items():
        for part, flat in parts.items():
            assert torch.equal(actual[name][part], flat), (name, part)


def loaded(path: Path, *, ema: bool = False) -> dict[str, dict[str, torch.Tensor]]:
    """All that a checkpoint holds, read by one rank."""
    tensors = blank_tensors(full_tensors(ema=ema))
    load_fragments(path, shards(tensors, 0, 1))
    return tensors


def write(
    directory: Path,
    step: int,
    world_size: int = 2,
    seed: int = 0,
    *,
    ema: bool = False,
    metrics: dict[str, float] | None = None,
    metadata: dict[str, Any] | None = None,
) -> list[Any]:
    """Save on that many ranks: what each returned or raised."""
    tensors = full_tensors(seed, ema=ema)

    def work(ranks: ThreadRanks) -> Saved:
        pieces = shards(tensors, ranks.rank, ranks.world_size)
        state = {"train": {"step": step}}
        return save(
            directory,
            step,
            fragments=pieces,
            state=state,
            metadata=metadata or {"model": {}},
            ranks=ranks,
            metrics=metrics,
        )

    return on_ranks(world_size, work)


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
