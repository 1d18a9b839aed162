"""Decoding processes: a torch DataLoader whose workers outlive signals meant for the run, but never the run itself.

A launcher sends SIGTERM to the entire process tree. The training process must then finish its step and save, which
requires its workers, so they ignore the signal. They end when the training process is gone.

They are forked from a fork server, a process without threads that has imported everything they need. A fork of the
training process itself would copy the locks of its threads for computing and communication, and sometimes hang.

Batches are passed through shared memory (/dev/shm). torch would put them there in a thread of the worker; if that
fails, the error is printed, the batch is lost, and the run waits for it forever. Here the worker itself does it and
reports a failure.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.queues
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from swinv2_train.config import own_parts
from swinv2_train.config.plugins import import_plugins
from swinv2_train.data import remarks
from swinv2_train.data.batch import share_memory
from swinv2_train.data.current import CurrentItems, working_on
from swinv2_train.data.errors import DataError
from swinv2_train.import_path import exported_import_path
from swinv2_train.shortage import READING, shortage

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PRELOADED = "swinv2_train.data.preload"
SHARED_MEMORY = Path("/dev/shm")
"""Location in which torch passes batches between processes."""
ENLARGE = "(docker run --shm-size=8g, or --ipc=host; else mount -o remount,size=8G /dev/shm)"
"""Ways to enlarge it."""
_REMARKS = "remarks"
"""Entry of a batch with the counts of `data.remarks` from its worker."""
_SERVER_GONE = 255
"""Exit code that Python reports for a process whose fork server is gone."""

_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals of a fault in native code, such as a decoder, rather than of a shortage."""


def start_server(also: Sequence[str] = ()) -> None:
    """Start the process that workers are forked from, if it does not run yet; it gets ready in the background.

    Args:
        also: further modules for it to import, once for all workers.
    """
    multiprocessing.set_forkserver_preload([_PRELOADED, *also, *own_parts.modules()])
    with exported_import_path(), warnings.catch_warnings():
        # A killed tracker is restarted; what it tracked is removed with the processes.
        warnings.filterwarnings("ignore", "resource_tracker: process died")
        # The server starts this one first, and that unblocks the signals again: so it has to stand already.
        multiprocessing.resource_tracker.ensure_running()
        with _signals_held_back():  # it keeps the signals blocked for its life, and so outlives them
            multiprocessing.forkserver.ensure_running()


class Failure:
    """Result of a worker that cannot make a batch: one sentence, and a traceback for a programmer."""

    def __init__(self, sentence: str, traceback: str = "") -> None:
        self.sentence, self.traceback = sentence, traceback

    def error(self) -> DataError:
        error = DataError(self.sentence)
        if self.traceback:
            error.add_note(self.traceback)
        return error


@dataclass(frozen=True)
class Workers:
    """Decoding processes of a loader."""

    num_workers: int = 0
    """0: batches are made in the process that requests them."""
    prefetch_batches: int = 2
    """Batches that each of them has ready."""


class WorkerPool:
    """Iterator over `dataset.__getitems__(indices)` for every list of indices in `batches`, in that order.

    With 0 workers, the batches are made in this process.
    """

    def __init__(self, dataset: Dataset[Any], batches: Iterable[Sequence[int]], workers: Workers) -> None:
        num_workers, prefetch_batches = workers.num_workers, workers.prefetch_batches
        if num_workers:
            start_server()
        self._dataset, self._current = dataset, CurrentItems(num_workers) if num_workers else None
        with warnings.catch_warnings():
            # More workers than cores are the user's choice, made in data.num_workers.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                _Shared(dataset, self._current),
                batch_sampler=batches,
                num_workers=num_workers,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                prefetch_factor=prefetch_batches if num_workers else None,
                multiprocessing_context="forkserver" if num_workers else None,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # or the loader would draw a seed from the global one of the model
            )
            try:
                with _signals_held_back():
                    self._iterator: Iterator[Any] | None = iter(loader)
            except (OSError, EOFError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and shortage(error) is None:
                    raise
                what = f"data.num_workers={num_workers}: the workers cannot be started"
                raise DataError(f"{what} ({_reason(error)})") from error
        self._workers = list(getattr(self._iterator, "_workers", []))
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    @property
    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def __iter__(self) -> WorkerPool:
        return self

    def __next__(self) -> Any:
        """Return the next batch. Raises DataError if a worker failed or died."""
        if self._iterator is None:
            raise StopIteration
        try:
            batch = next(self._iterator)
        except (RuntimeError, OSError) as error:
            told = self._told(error)
            if told is None:
                raise
            raise told from None
        if isinstance(batch, Failure):
            raise batch.error()
        if isinstance(batch, dict):
            remarks.add(batch.pop(_REMARKS, {}))
        return batch

    def _told(self, error: RuntimeError | OSError) -> DataError | None:
        """Return the message for an error between the workers and this process; None for any other error."""
        text = str(error)
        if "DataLoader worker" in text:
            return DataError(_died(self._workers, text.splitlines()[0], self._sample_of))
        if "pin memory thread" in text.lower():  # torch: exited unexpectedly, or an error caught in it
            return DataError(
                f"a batch cannot be copied into pinned memory ({text.splitlines()[-1].strip()}): this host is short of "
                "memory; lower data.prefetch_batches, data.num_workers, or engine.micro_batch"
            )
        if isinstance(error, OSError) or "Too many open files" in text:
            return DataError(f"a batch cannot be taken from the data workers ({_reason(error)})")
        return None

    def _sample_of(self, worker: int) -> str:
        """Return the name of the sample that a worker was decoding; empty if unknown."""
        index = self._current.of(worker) if self._current is not None else None
        name_of = getattr(self._dataset, "name_of", None)
        return name_of(index) if index is not None and name_of is not None else ""

    def close(self) -> None:
        """End the workers and wait until they are gone."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        for worker in self._workers:  # torch ends unresponsive workers with SIGTERM, which ours ignore
            if worker.is_alive():
                worker.kill()
            worker.join()
            if worker.exitcode == _SERVER_GONE and _runs(worker.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        self._workers = []
        atexit.unregister(self._at_exit)


class _Shared(Dataset[Any]):
    """Return the same batches, in shared memory if a worker makes them."""

    def __init__(self, dataset: Any, current: CurrentItems | None) -> None:
        self._dataset, self._current = dataset, current
        self._plugins = own_parts.modules()

    def __getitems__(self, indices: Sequence[int]) -> Any:
        worker = get_worker_info()
        if worker is not None and self._current is not None:
            self._current.take(worker.id)
            import_plugins(self._plugins)  # which names their parts in this process too
        batch = self._dataset.__getitems__(indices)
        working_on(None)
        if worker is None or not isinstance(batch, dict):
            return batch
        if counts := remarks.taken():
            batch[_REMARKS] = counts
        try:
            share_memory(batch)
        except (RuntimeError, OSError) as error:
            return Failure(unshared(error))
        return batch


def unshared(error: Exception) -> str:
    """Return the message for an error of `batch.share_memory`."""
    if "Too many open files" in str(error):
        return f"a data worker cannot pass on a batch ({_reason(error)})"
    return (
        f"a data worker cannot put a batch into shared memory ({_reason(error)}): lower data.num_workers or "
        f"data.prefetch_batches, or enlarge {SHARED_MEMORY} {ENLARGE}"
    )


def _reason(error: BaseException) -> str:
    """Return an operating system error in a few words, with the remedy if there is one."""
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return shortage(error, READING) or text


def _died(workers: Sequence[Any], text: str, sample_of: Callable[[int], str]) -> str:
    """Return the message about workers that ended by themselves."""
    ended = [worker for worker in workers if not worker.is_alive()]
    if any(worker.exitcode == _SERVER_GONE and _runs(worker.pid) for worker in ended):
        return "the process that data workers are forked from was killed; rerun the same command to resume the run"
    number = next((-worker.exitcode for worker in ended if (worker.exitcode or 0) < 0), 0)
    samples = [sample_of(i) for i, worker in enumerate(workers) if not worker.is_alive() and (worker.exitcode or 0) < 0]
    sample = next(filter(None, samples), "")
    if number in _CRASHES and sample:
        return (
            f"a data worker crashed ({signal.Signals(number).name}) while it decoded {sample}: remove this image from "
            "the shards, or pack them again without it"
        )
    if number == signal.SIGBUS:
        return (
            f"a data worker died of SIGBUS: {SHARED_MEMORY} is full; lower data.num_workers or data.prefetch_batches, "
            f"or enlarge it {ENLARGE}"
        )
    how = f"of {signal.Signals(number).name}" if number in set(signal.Signals) else f"({text})"
    how += f" while it decoded {sample}" if sample else ""
    return (
        f"a data worker died {how}, most often for want of memory or of room in {SHARED_MEMORY}: lower "
        "data.num_workers or data.prefetch_batches"
    )


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _end_worker(error: Exception, _batch: Any) -> None:
    """End a worker whose thread cannot send a batch: torch would continue without it, and the run would hang."""
    print(f"a data worker cannot send a batch: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _start_worker(_worker: int) -> None:
    """Runs in a new worker, before its first batch."""
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)
    remarks.only_decodes()
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
