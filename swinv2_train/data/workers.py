"""Decoding processes: a torch DataLoader whose workers outlive signals meant for the run, but never the run itself.

A launcher sends SIGTERM to the whole process tree. The training process must then finish its step and save, for which
it needs its workers; so they ignore the signal. In return they end when the training process is gone.

They come from a fork server, a process without threads that has imported what they need. A fork of the training process
itself, with its threads for computing and communication, copies their locks as they are and now and then hangs.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from swinv2_train.data.errors import DataError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PRELOADED = ["swinv2_train.data.loader", "swinv2_train.data.augment"]


def start_server(also: Sequence[str] = ()) -> None:
    """Start the process that workers are forked from, if it does not run yet; it gets ready in the background.

    Args:
        also: further modules for it to import, once for all workers.
    """
    multiprocessing.set_forkserver_preload([*_PRELOADED, *also])
    # The server starts this one first, and that unblocks the signals again: so it has to stand already.
    multiprocessing.resource_tracker.ensure_running()
    with _signals_held_back():  # it keeps the signals blocked for its life, and so outlives them
        multiprocessing.forkserver.ensure_running()


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
        if num_workers:
            start_server()
        with warnings.catch_warnings():
            # More workers than cores are the user's choice, made in data.num_workers.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                dataset,
                batch_sampler=batches,
                num_workers=num_workers,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                prefetch_factor=prefetch_batches if num_workers else None,
                multiprocessing_context="forkserver" if num_workers else None,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # or the loader would draw a seed from the global one of the model
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


def _start_worker(_worker: int) -> None:
    """Runs in a new worker, before its first batch."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    end_with_parent()


def end_with_parent() -> None:
    """Have this worker end when the process that asked for it is gone, however that one died."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    # torch watches the process that forked a worker, which is the server and not the one that asked for it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block stop signals while a process starts: it has the mask, so none can reach it before it ignores them."""
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
