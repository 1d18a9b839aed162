"""The copy in host memory that a save in the background writes from."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.checkpoint import saver as saver_module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import step_name
from swinv2_train.checkpoint.saver import HostCopy, Outcome, Saver
from tests.checkpoint.ranks import ThreadRanks, assert_equal, full_tensors, loaded, on_ranks, shards
from tests.checkpoint.savers import begin, policy, spy_on_writes


def test_the_host_memory_is_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "_BLOCK_ELEMENTS", 40)  # the weight of 35 and what is smaller share blocks
    host = HostCopy()
    pieces = shards(full_tensors(0, ema=True), 0, 1)
    pointers = [copied.weight.data_ptr() for copied in host.take(pieces)]
    for piece in pieces:
        piece.weight.add_(1)
    again = host.take(pieces)
    assert [copied.weight.data_ptr() for copied in again] == pointers
    for piece, copied in zip(pieces, again, strict=True):
        assert (copied.name, copied.shape, copied.start) == (piece.name, piece.shape, piece.start)
        for part in ("weight", "exp_avg", "exp_avg_sq", "ema"):
            assert torch.equal(getattr(copied, part), getattr(piece, part))
            assert getattr(copied, part).data_ptr() != getattr(piece, part).data_ptr()


def test_fragments_of_another_size_get_other_memory() -> None:
    host = HostCopy()
    host.take(shards(full_tensors(), 0, 2))
    pieces = shards(full_tensors(ema=True), 1, 2)
    for piece, copied in zip(pieces, host.take(pieces), strict=True):
        assert torch.equal(copied.exp_avg, piece.exp_avg)
        assert torch.equal(copied.ema, piece.ema)


def test_too_little_host_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    pieces = shards(full_tensors(), 0, 1)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(CheckpointError, match=r"needs 0.0 GiB of host memory .* set checkpoint.background=false"):
        HostCopy().take(pieces)


@pytest.mark.parametrize("error", [CheckpointError("no memory: set checkpoint.background=false"), KeyError("x")])
@pytest.mark.parametrize("poor", [0, 1])
def test_if_one_rank_has_no_memory_for_the_copy_all_write_while_the_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poor: int, error: Exception
) -> None:
    writers: list[str] = []
    spy_on_writes(monkeypatch, lambda path: writers.append(threading.current_thread().name))

    def refuse(_: object) -> list[Any]:
        raise error

    def work(ranks: ThreadRanks) -> tuple[list[Outcome], list[Outcome]]:
        saver = Saver(tmp_path, ranks, policy())
        if ranks.rank == poor:
            saver._host.take = refuse  # type: ignore[method-assign]
        begin(saver, 10, ranks.rank, 2, ema=True)
        at_once = saver.poll()
        begin(saver, 20, ranks.rank, 2, ema=True)
        return at_once, saver.finish()

    for at_once, later in on_ranks(2, work):
        (outcome,) = at_once
        assert (outcome.failure, outcome.attempts) == (None, 1)
        (warning,) = outcome.warnings
        assert warning.startswith(f"rank {poor}: ")
        assert str(error) in warning
        assert warning.endswith("; training waits while this save is written")
        assert outcome.pause_seconds >= outcome.write_seconds > 0
        (outcome,) = later  # the memory was freed, and requested again
        assert (outcome.failure, outcome.warnings) == (None, [])
    assert len(writers) == 12
    assert [name == "saver" for name in writers] == [False] * 6 + [True] * 6
    for step in (10, 20):
        assert_equal(loaded(tmp_path / step_name(step), ema=True), full_tensors(step, ema=True))
