"""Ranks that lose each other, or never meet, end in one sentence; the watchdog can see what they were doing."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from swinv2_train.config.errors import ConfigError
from swinv2_train.errors import LostRanks, RunError
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.launch import records
from swinv2_train.launch.environment import free_port
from swinv2_train.launch.ranks import Ranks, as_lost_rank, join, joined_ranks, leave
from tests.engine.apart import LAUNCHER, Apart


@pytest.fixture
def apart(tmp_path: Path) -> Apart:
    with Apart(tmp_path) as processes:
        yield processes


def lose_the_other(method: str) -> None:
    """Rank 1 dies before the collective; rank 0 prints what it gets, and leaves as a run would."""
    ranks = join("cpu", 1.0)
    ranks.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        getattr(ranks, method)(*(([1.0],) if method in ("sum", "gather", "broadcast") else ()))
        ranks.barrier()  # a broadcast may be sent before the other end is known to be gone
    except LostRanks as error:
        print(error, flush=True)
        os._exit(FAILED)


@pytest.mark.parametrize("method", ["barrier", "sum", "gather", "broadcast"])
def test_a_rank_that_was_killed_is_one_sentence_in_the_others(apart: Apart, tmp_path: Path, method: str) -> None:
    apart.start_ranks(2, lose_the_other, method)
    assert apart.exit_codes() == [FAILED, -signal.SIGKILL]
    (sentence,) = [line for line in apart.output(0).splitlines() if line.startswith("rank 0")]
    assert re.fullmatch(
        r"rank 0 lost contact with another rank \(.*(closed|reset) by peer.*\): the remaining ranks end; "
        r"rerun the same command to resume from the newest checkpoint",
        sentence,
    )


def wait_in_vain() -> None:
    ranks = join("cpu", 0.05)
    if ranks.rank == 1:
        threading.Event().wait()
    try:
        ranks.gather(1)
    except LostRanks as error:
        print(error, flush=True)
    print(ranks.last_collective, flush=True)
    os._exit(FINISHED)


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_lost_as_well(apart: Apart) -> None:
    apart.start_ranks(2, wait_in_vain)
    apart.processes[0].join(90)
    assert apart.processes[0].exitcode == FINISHED
    assert "rank 0 lost contact with another rank (Timed out waiting 3000ms" in apart.output(0)
    assert re.search(r"^gather number 1, begun \d+ s ago, not finished$", apart.output(0), re.MULTILINE)


def lose_the_other_in_training() -> None:
    ranks = join("cpu", 1.0)
    ranks.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for _ in range(3):
            dist.all_reduce(torch.ones(3))  # on the group of the gradients, which is not ours
    except RuntimeError as error:
        print(as_lost_rank(error), flush=True)
        os._exit(FAILED)


def test_a_rank_that_is_lost_in_a_collective_of_others_is_recognised(apart: Apart) -> None:
    apart.start_ranks(2, lose_the_other_in_training)
    assert apart.exit_codes() == [FAILED, -signal.SIGKILL]
    assert "rank 0 lost contact with another rank (" in apart.output(0)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]"),
            True,
        ),
        (
            RuntimeError("[/x/gloo/gloo/transport/tcp/pair.cc:547] Read error [10.0.0.2]: Connection reset by peer"),
            True,
        ),
        (RuntimeError("[/x/gloo/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 2000ms for recv"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistStoreError("wait timeout after 8000ms, keys: /default_pg/0//2//cpu//0/1"), True),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), True),
        (dist.DistBackendError("NCCL error: ncclRemoteError: A call failed possibly due to a network error"), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 3."), True),
        # A contradiction between ranks, which is a fault of the program.
        (RuntimeError("[/x/gloo/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"), False),
        (dist.DistBackendError("NCCL error: ncclInvalidUsage: too many ranks on one GPU"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("Connection reset by peer"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (RunError("the server of the shards timed out (gloo.example.org)"), False),
        (TimeoutError("timed out"), False),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_only_the_loss_of_a_rank_is_taken_for_one(error: Exception, lost: bool) -> None:
    assert (as_lost_rank(error) is not None) == lost


def test_a_sentence_stays_the_sentence_that_it_is() -> None:
    error = RunError("rank 1 of 2 could not join the others")
    error.__cause__ = dist.DistNetworkError("The client socket has timed out")
    assert as_lost_rank(error) is None
    lost = LostRanks("rank 1 lost contact")
    assert as_lost_rank(lost) is lost
    wrapped = RuntimeError("the save failed")
    wrapped.__cause__ = dist.DistNetworkError("failed to recv, got 0 bytes")
    assert as_lost_rank(wrapped) is not None


def test_the_reason_is_short_and_without_the_path_of_the_source() -> None:
    text = "[/pytorch/third_party/gloo/gloo/pair.cc:561] Connection closed by peer [10.0.0.2]:29584. This is typically "
    lost = as_lost_rank(RuntimeError(text + "caused by a remote worker crashing.\nframe #0: c10::Error"))
    assert str(lost).startswith("rank 0 lost contact with another rank (Connection closed by peer [10.0.0.2]:29584): ")


def talk_in_two_threads() -> None:
    ranks = join("cpu", 1.0)
    ranks.gather("first")
    beside, got = ranks.another(), []
    thread = threading.Thread(target=lambda: got.extend(beside.gather(("beside", ranks.rank)) for _ in range(20)))
    thread.start()
    for number in range(20):
        assert ranks.gather((number, ranks.rank)) == [(number, 0), (number, 1)]
    thread.join()
    assert got == [[("beside", 0), ("beside", 1)]] * 20
    print(ranks.last_collective, flush=True)
    ranks.barrier()
    leave()


def test_another_group_serves_another_thread(apart: Apart) -> None:
    apart.start_ranks(2, talk_in_two_threads)
    assert apart.exit_codes() == [FINISHED, FINISHED], apart.output(0) + apart.output(1)
    expected = r"gather number 22, .* finished \d+ s ago; in the background: gather number 20, .* finished \d+ s ago"
    assert re.search(expected, apart.output(0))


def add_up() -> None:
    ranks = join("cpu", 1.0)
    sums = ranks.sum_all(
        {"total": 0.5 + ranks.rank, "table": np.full((2, 3), ranks.rank + 1.0), "one": np.array([float(ranks.rank)])}
    )
    assert sums["total"] == 2.0
    assert isinstance(sums["total"], float)
    assert np.array_equal(sums["table"], np.full((2, 3), 3.0))
    assert np.array_equal(sums["one"], [1.0])
    largest = collect_interleaved(ranks)
    assert largest <= records.MESSAGE_BYTES
    leave()


def collect_interleaved(ranks: Ranks) -> int:
    """Every rank has some of 40 records, one of them far larger than a message; returns the largest message."""
    records.MESSAGE_BYTES, sizes, receive = 512, [0], ranks.receive
    ranks.receive = lambda rank: (sizes.append(len(message := receive(rank))), message)[1]  # type: ignore[method-assign]
    own = {position: b"x" * (5000 if position == 17 else position) for position in range(ranks.rank, 40, 2)}
    found = records.collect(own, ranks)
    expected = [(position, b"x" * (5000 if position == 17 else position)) for position in range(40)]
    assert found == (expected if ranks.is_main else [])
    assert not ranks.is_main or len(sizes) > 10
    return max(sizes)


def test_numbers_and_arrays_add_up_over_ranks_and_keep_their_shapes(apart: Apart) -> None:
    """And records come together on the main rank in order, in bounded messages."""
    apart.start_ranks(2, add_up)
    assert apart.exit_codes() == [FINISHED, FINISHED], apart.output(0) + apart.output(1)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "first"),
        ("RANK", "2"),
        ("WORLD_SIZE", ""),
        ("MASTER_PORT", "x"),
        ("MASTER_ADDR", ""),
        ("LOCAL_RANK", "-"),
    ],
)
def test_inconsistent_variables_of_a_launcher(launched: pytest.MonkeyPatch, name: str, value: str) -> None:
    launched.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}="):
        join("cpu", 1.0)


def test_a_port_that_is_taken_is_one_sentence(launched: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        launched.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(RunError, match=r"^rank 0 of 2 could not join .*another process listens on this port.*$"):
            join("cpu", 1.0)


@pytest.mark.slow
def test_ranks_that_never_come_are_one_sentence(launched: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RunError, match=r"^rank 0 of 2 could not join the others at 127.0.0.1:\d+ \(.*\): check that every"
    ):
        join("cpu", 1 / 60)


def test_an_address_that_is_none_is_one_sentence(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("RANK", "1")
    launched.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(RunError, match="this machine cannot resolve MASTER_ADDR"):
        join("cpu", 1 / 60)


def test_gpus_whose_driver_is_too_old_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="there are GPUs here, but CUDA does not start"):
        join("cuda", 1)


def test_the_ranks_are_left_whatever_happens_and_a_lost_one_is_named() -> None:
    for error, expected in (
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), LostRanks),
        (RunError("another error"), RunError),
    ):
        with pytest.raises(RunError) as caught, joined_ranks("cpu", 1.0):
            raise error
        assert type(caught.value) is expected
        assert not dist.is_initialized()
    with joined_ranks("cpu", 1.0) as ranks:
        assert ranks.world_size == 1
    assert not dist.is_initialized()
