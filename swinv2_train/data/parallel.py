"""Parallel map for packing and inspecting: results in order, with a bounded number waiting."""

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

from swinv2_train.config import own_parts
from swinv2_train.config.plugins import import_plugins
from swinv2_train.data import remarks
from swinv2_train.data.current import CurrentItems, working_on
from swinv2_train.data.errors import UnreachableData
from swinv2_train.data.workers import end_with_parent, start_server

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 16
"""Items that a process gets at a time."""
_NAMED = 8
_CHUNKS_PER_WORKER = 3
_task: Callable[[Any], Any]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ParallelMap:
    """Yield `task(item)` for every item, in order, from `workers` processes; from this one if `workers` is 0.

    `task` is sent to each process once. Raises UnreachableData if a process dies.
    """

    def __init__(
        self,
        task: Callable[[Item], Result],
        workers: int,
        name: Callable[[Item], str] = str,
        chunk: int = CHUNK,
    ) -> None:
        self._task, self._workers, self._name, self._chunk = task, workers, name, chunk
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            start_server()
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=self._start_with(context))

    def _start_with(self, context: Any) -> tuple[Any, ...]:
        self._current = CurrentItems(self._workers)
        return self._task, self._current, context.Value("i", 0), own_parts.modules()

    def __call__(self, items: Iterable[Item]) -> Iterator[Result]:
        if self._pool is None:
            yield from map(self._task, items)
            return
        rest = iter(items)
        chunks = iter(lambda: list(itertools.islice(rest, self._chunk)), [])
        waiting: deque[tuple[int, list[Item], Future[Any]]] = deque()
        try:
            for number, chunk in zip(itertools.count(0, self._chunk), chunks, strict=False):
                waiting.append((number, chunk, self._pool.submit(_run, number, chunk)))
                if len(waiting) >= self._workers * _CHUNKS_PER_WORKER:
                    yield from _received(waiting[0][2])
                    waiting.popleft()
            while waiting:
                yield from _received(waiting[0][2])
                waiting.popleft()
        except BrokenProcessPool:
            held = {number + i: item for number, chunk, _ in waiting for i, item in enumerate(chunk)}
            raise UnreachableData(
                self._died([held[number] for number in self._current.all() if number in held])
            ) from None
        finally:
            for _, _, future in waiting:
                future.cancel()

    def _died(self, items: list[Item]) -> str:
        """Return the message about a process that ended by itself; `items`: those that all processes were working
        on."""
        names = ", ".join(map(self._name, items[:_NAMED]))
        which = f" while the processes decoded {names}" if items else ""
        return f"a decoding process died{which}: a file crashes its decoder, or memory is short (use fewer --workers)"

    def close(self, *, wait: bool = True) -> None:
        """End the processes.

        Args:
            wait: until each has finished its item, such as a long video; False: they end on their own, or with this
                process.
        """
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)


def _start(task: Callable[[Any], Any], current: CurrentItems, started: Any, plugins: list[str]) -> None:
    import torch

    import_plugins(plugins)
    with started.get_lock():
        current.take(started.value)
        started.value += 1
    global _task
    _task = task
    remarks.only_decodes()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))  # the server has them blocked
    end_with_parent()


def _received(future: Future[Any]) -> list[Any]:
    results, counts = future.result()
    remarks.add(counts)
    return results


def _run(first: int, chunk: list[Any]) -> tuple[list[Any], dict[str, int]]:
    results = []
    for number, item in enumerate(chunk, first):
        working_on(number)
        results.append(_task(item))
    working_on(None)
    return results, remarks.taken()
