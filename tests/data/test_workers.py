"""Decoding processes when signals arrive, when the run dies, and when they die."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import Dataset

from swinv2_train.data.current import working_on
from swinv2_train.data.errors import DataError
from swinv2_train.data.parallel import ParallelMap
from swinv2_train.data.workers import WorkerPool, Workers
from swinv2_train.exit_codes import FAILED

pytestmark = pytest.mark.usefixtures("default_signals")


class Unsharable(torch.Tensor):
    """A tensor for which /dev/shm has no room."""

    def share_memory_(self) -> Unsharable:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


class Numbers(Dataset[Any]):
    """Returns what it is asked for; -1 makes the worker hang, -2 kills it, -3 fills its /dev/shm.

    -4 gives a batch that cannot be sent, -5 has the worker die of a full /dev/shm, -6 crashes it.
    """

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        if indices[0] == -1:
            time.sleep(1000)
        if indices[0] == -2:
            os.kill(os.getpid(), signal.SIGKILL)
        if indices[0] == -3:
            return {"numbers": torch.zeros(3).as_subclass(Unsharable)}
        if indices[0] == -4:
            return {"numbers": lambda: None}
        if indices[0] == -5:
            os.kill(os.getpid(), signal.SIGBUS)
        if indices[0] == -6:
            working_on(77)
            os.abort()
        working_on(indices[0])
        return {"numbers": torch.tensor(list(indices)), "threads": torch.get_num_threads()}

    def name_of(self, index: int) -> str:
        return f"sample {index}"


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_batches_come_in_order_from_single_threaded_workers() -> None:
    pool = WorkerPool(Numbers(), ([i, i + 1] for i in count()), Workers(2, 2))
    for i in range(20):
        batch = next(pool)
        assert batch["numbers"].tolist() == [i, i + 1]
        assert batch["threads"] == 1
    pool.close()


@pytest.fixture
def own_server(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker server of this file, started among files that are named like modules.

    One that other tests have started does not hold signals back.
    """
    monkeypatch.chdir(hostile)
    multiprocessing.resource_tracker._resource_tracker._stop()
    multiprocessing.forkserver._forkserver._stop()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_stop_signals(own_server: None, number: int) -> None:
    pool = WorkerPool(Numbers(), ([i] for i in count()), Workers(2, 1))
    for pid in pool.worker_pids:
        os.kill(pid, number)
    for i in range(10):
        assert next(pool)["numbers"].tolist() == [i]
        for pid in pool.worker_pids:
            os.kill(pid, number)
    pool.close()


def test_close_leaves_no_process_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = WorkerPool(Numbers(), ([i] for i in count()), Workers(2, 2))
        pids = pool.worker_pids
        next(pool)
        pool.close()
        pool.close()
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(StopIteration):
        next(pool)


def test_close_ends_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    pool = WorkerPool(Numbers(), [[-1]], Workers(1, 1))
    (pid,) = pool.worker_pids
    pool.close()
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_a_dead_worker_ends_the_run_in_one_sentence() -> None:
    pool = WorkerPool(Numbers(), [[-2]], Workers(1, 1))
    with pytest.raises(DataError, match=r"^a data worker died of SIGKILL, .*lower data\.num_workers") as caught:
        next(pool)
    assert "\n" not in str(caught.value)
    pool.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "words"),
    [
        (-3, ("cannot put a batch into shared memory", "No space left", "data.num_workers", "--shm-size")),
        (-4, ("a data worker died",)),
        (-5, ("SIGBUS", "/dev/shm is full", "--shm-size")),
        (-6, ("a data worker crashed (SIGABRT) while it decoded sample 77: remove this image from the shards",)),
    ],
)
def test_a_batch_that_does_not_arrive_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, index: int, words: tuple[str, ...]
) -> None:
    """torch shares and sends a batch in a thread of the worker, and goes on without it if that fails."""
    monkeypatch.setattr("torch.utils.data.dataloader._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    pool = WorkerPool(Numbers(), [[0], [index]], Workers(1, 1))
    assert next(pool)["numbers"].tolist() == [0]
    with pytest.raises(DataError) as caught:
        next(pool)
    for word in words:
        assert word in str(caught.value)
    pool.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Pin memory thread exited unexpectedly"), ("pinned memory", "engine.micro_batch")),
        (
            RuntimeError("Caught RuntimeError in pin memory thread for device 0.\nTraceback\nCUDA error"),
            ("CUDA error",),
        ),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), ("ulimit -n",)),
        (OSError(24, "Too many open files"), ("ulimit -n",)),
    ],
    ids=str,
)
def test_a_failure_in_a_thread_of_this_process_is_one_sentence(error: Exception, words: tuple[str, ...]) -> None:
    def batches() -> Iterator[Any]:
        raise error
        yield

    pool = WorkerPool(Numbers(), [], Workers(0, 1))
    pool._iterator = batches()
    with pytest.raises(DataError) as caught:
        next(pool)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_killed_fork_server_is_named_and_its_workers_are_ended(
    own_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data.dataloader._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    pool = WorkerPool(Numbers(), [[0], [-1]], Workers(1, 1))
    (pid,) = pool.worker_pids
    next(pool)
    os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    with pytest.raises(DataError, match="the process that data workers are forked from was killed"):
        next(pool)
    pool.close()
    wait_until(lambda: not psutil.pid_exists(pid))
    pool = WorkerPool(Numbers(), [[1]], Workers(1, 1))  # from another server
    assert next(pool)["numbers"].tolist() == [1]
    pool.close()


@pytest.mark.slow
def test_a_killed_resource_tracker_is_replaced(own_server: None) -> None:
    gc.collect()  # queues of earlier tests would be released below, with a warning about the tracker
    pool = WorkerPool(Numbers(), ([i] for i in count()), Workers(1, 1))
    next(pool)
    os.kill(multiprocessing.resource_tracker._resource_tracker._pid, signal.SIGKILL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(pool)["numbers"].tolist() == [1]
        pool.close()
        pool = WorkerPool(Numbers(), [[7]], Workers(1, 1))
        assert next(pool)["numbers"].tolist() == [7]
        pool.close()


def run_for_ever(report: Any) -> None:
    pool = WorkerPool(Numbers(), ([i] for i in count()), Workers(2, 1))
    next(pool)
    report.send(pool.worker_pids)
    time.sleep(1000)


@pytest.mark.slow
def test_workers_die_with_a_killed_run() -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    run = context.Process(target=run_for_ever, args=(there,))
    run.start()
    pids = here.recv()
    assert len(pids) == 2
    run.kill()
    run.join()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


FORGETFUL = """
from itertools import count
from tests.data.test_workers import Numbers
from swinv2_train.data.workers import WorkerPool, Workers

pool = WorkerPool(Numbers(), ([i] for i in count()), Workers(2, 1))
next(pool)
print(*pool.worker_pids)
"""


@pytest.mark.slow
def test_a_run_that_forgets_to_close_ends_all_the_same() -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", FORGETFUL]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert result.returncode == 0
    assert result.stderr == ""
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def crash_at_twenty(number: int) -> int:
    if number == 20:
        os.abort()
    return number


def test_a_parallel_map_that_crashes_names_the_items_in_hand() -> None:
    crashing = ParallelMap(crash_at_twenty, workers=1, name=lambda number: f"image {number}")
    with pytest.raises(
        DataError, match=r"a decoding process died while the processes decoded image 20: a file crash"
    ) as e:
        list(crashing(range(40)))
    assert e.value.exit_code == FAILED
    crashing.close()
