"""Decoding processes: a torch DataLoader whose workers outlive signals meant for the run, but never the run itself.

A launcher sends SIGTERM to the whole process tree. The training process must then finish its step and save, for which
it needs its workers; so they ignore the signal. In return the kernel kills them when their parent dies.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from swinv2_train.data.errors import DataError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1


class Failure:
    """What a worker returns instead of a batch when it cannot go on: one sentence, and a traceback for a programmer."""

    def __init__(self, sentence: str, traceback: str = "") -> None:
        self.sentence, self.traceback = sentence, traceback

    def error(self) -> DataError:
        error = DataError(self.sentence)
        if self.traceback:
            error.add_note(self.traceback)
        return error


class WorkerPool:
    """Iterator over `dataset.__getitems__(indices)` for every list of indices in `batches`, in that order.

    With 0 workers the batches are made in this process.
    """

    def __init__(
        self, dataset: Dataset[Any], batches: Iterable[Sequence[int]], *, num_workers: int, prefetch_batches: int
    ) -> None:
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_WorkerStart(),
            prefetch_factor=prefetch_batches if num_workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or the loader would draw a seed from the global one, which the model uses
        )
        with _signals_held_back():
            self._iterator: Iterator[Any] | None = iter(loader)
        self._workers = list(getattr(self._iterator, "_workers", []))
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    @property
    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def __iter__(self) -> WorkerPool:
        return self

    def __next__(self) -> Any:
        """The next batch. Raises DataError where a worker failed or died."""
        if self._iterator is None:
            raise StopIteration
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a data worker died ({str(error).splitlines()[0]}), most often for want of memory or of room in "
                "/dev/shm: lower data.num_workers or data.prefetch_batches"
            ) from None
        if isinstance(batch, Failure):
            raise batch.error()
        return batch

    def close(self) -> None:
        """End the workers and wait until they are gone."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        for worker in self._workers:  # torch ends the deaf ones with SIGTERM, which ours ignore
            if worker.is_alive():
                worker.kill()
            worker.join()
        self._workers = []
        atexit.unregister(self._at_exit)


class _WorkerStart:
    """Runs in a new worker, before its first batch."""

    def __init__(self) -> None:
        self._parent = os.getpid()
        # The kernel watches the thread that forked, so a short-lived thread must not ask for this.
        self._die_with_parent = threading.current_thread() is threading.main_thread()

    def __call__(self, _worker: int) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        if self._die_with_parent:
            die_with_parent()
            if os.getppid() != self._parent:  # it died before the kernel was told
                os._exit(1)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block stop signals while forking: a child has the mask, so none can reach it before it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close_if_alive(pool: weakref.ref[WorkerPool]) -> None:
    alive = pool()
    if alive is not None:
        alive.close()


def _unchanged(batch: Any) -> Any:
    return batch
