"""Ranks that are threads of one process: the few collectives that an evaluation needs, without a start of processes."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from swinv2_train.errors import MainRankError, RunError

T = TypeVar("T")


class ThreadRanks:
    """Stands in for `launch.ranks.Ranks` in one of several threads."""

    def __init__(self, rank: int, shared: list[Any], letters: list[queue.Queue], barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, len(shared)
        self.device, self.device_name = torch.device("cpu"), "CPU"
        self._shared, self._letters, self._barrier = shared, letters, barrier

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        self._shared[self.rank] = value
        self._barrier.wait(60)
        values = list(self._shared)
        self._barrier.wait(60)
        return values

    def broadcast(self, value: Any) -> Any:
        sent = self.gather(pickle.dumps(value) if self.is_main else None)[0]
        return value if self.is_main else pickle.loads(sent)  # a copy, as in another process

    def sum_all(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        parts = self.gather(dict(sums))
        return {name: np.sum([part[name] for part in parts], axis=0) for name in sums}

    def send(self, message: bytes) -> None:
        self._letters[self.rank].put(message)

    def receive(self, rank: int) -> bytes:
        return self._letters[rank].get(timeout=60)

    def end(self, text: str) -> RunError:
        return RunError(text) if self.is_main else MainRankError(text)


def on_ranks(world_size: int, work: Callable[[Any], T]) -> list[T]:
    """Return the results of `work` on every rank."""
    barrier, shared = threading.Barrier(world_size), [None] * world_size
    letters: list[queue.Queue] = [queue.Queue(1) for _ in range(world_size)]  # a sender waits for the receiver
    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(work, ThreadRanks(rank, shared, letters, barrier)) for rank in range(world_size)]
        return [future.result(120) for future in futures]
