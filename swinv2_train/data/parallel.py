"""A parallel map for packing and inspecting: results in order, a bounded number of them waiting."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from swinv2_train.data.errors import DataError
from swinv2_train.data.workers import end_with_parent, start_server

Item = TypeVar("Item")
Result = TypeVar("Result")
_CHUNK = 16
_CHUNKS_PER_WORKER = 3
_task: Callable[[Any], Any]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ParallelMap:
    """`task(item)` for every item, in order, in `workers` processes; in this one where `workers` is 0.

    `task` is sent to each process once. Raises DataError where a process dies.
    """

    def __init__(self, task: Callable[[Item], Result], workers: int) -> None:
        self._task, self._workers = task, workers
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            start_server()
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(task,))

    def __call__(self, items: Iterable[Item]) -> Iterator[Result]:
        if self._pool is None:
            yield from map(self._task, items)
            return
        rest = iter(items)
        chunks = iter(lambda: list(itertools.islice(rest, _CHUNK)), [])
        waiting: deque[Future[list[Result]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(self._pool.submit(_run, chunk))
                if len(waiting) >= self._workers * _CHUNKS_PER_WORKER:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError("a decoding process died, most often for want of memory: use fewer --workers") from None
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start(task: Callable[[Any], Any]) -> None:
    import torch

    global _task
    _task = task
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))  # the server has them blocked
    end_with_parent()


def _run(chunk: list[Any]) -> list[Any]:
    return [_task(item) for item in chunk]
