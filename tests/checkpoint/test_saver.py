"""Saves in the background: the state at `begin`, one at a time, tried again, and never at the cost of an older one."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.checkpoint import save as save_module
from swinv2_train.checkpoint import saver as saver_module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import list_checkpoints, step_name
from swinv2_train.checkpoint.saver import HostCopy, Outcome, Saver
from swinv2_train.checkpoint.survey import read_state
from swinv2_train.checkpoint.verify import newest_valid, verify
from swinv2_train.config.schema import CheckpointConfig
from tests.checkpoint.ranks import (
    ThreadRanks,
    assert_equal,
    full_tensors,
    loaded,
    on_ranks,
    shards,
    thread_ranks,
    write,
)

NO_SPACE = "{} cannot be written (No space left on device; make room there, or choose another path)"
PATIENCE = 30.0
"""Seconds after which something that must happen has not."""


def policy(**values: Any) -> CheckpointConfig:
    return CheckpointConfig(**{"retry_seconds": 0.0, **values})


def begin(saver: Saver, step: int, rank: int, world_size: int, *, ema: bool = False, **content: Any) -> None:
    """Save the tensors of seed `step`."""
    pieces = iter(shards(full_tensors(step, ema=ema), rank, world_size))
    saver.begin(step, fragments=pieces, **{"state": {"step": step}, "metadata": {}, "metrics": {}, **content})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def spy_on_writes(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], object], after: Callable[[Path], object] = lambda _: None
) -> None:
    real = save_module.write_safetensors

    def spied(path: Path, *arguments: Any) -> Any:
        before(path)
        written = real(path, *arguments)
        after(path)
        return written

    monkeypatch.setattr(save_module, "write_safetensors", spied)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_save_in_flight_keeps_the_state_at_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, ema: bool
) -> None:
    changed = threading.Barrier(world_size + 1, timeout=PATIENCE)
    gate = threading.Event()
    spy_on_writes(monkeypatch, lambda path: gate.wait(PATIENCE))
    tensors = full_tensors(ema=ema)

    def work(ranks: ThreadRanks) -> list[Outcome]:
        saver = Saver(tmp_path, ranks, policy())
        own = shards(tensors, ranks.rank, world_size)
        state, metadata, metrics = {"losses": [1.0]}, {"model": {"depths": [2]}}, {"eval/loss": 0.5}
        saver.begin(10, fragments=own, state=state, metadata=metadata, metrics=metrics)
        for piece in own:
            piece.weight.zero_()
            piece.exp_avg.zero_()
            piece.exp_avg_sq.zero_()
            if piece.ema is not None:
                piece.ema.zero_()
        state["losses"].append(2.0)
        metadata["model"]["depths"].append(4)
        metrics["eval/loss"] = 9.0
        assert saver.poll() == []
        assert saver.last_saved is None
        changed.wait()
        outcomes = saver.finish()
        assert saver.poll() == []
        assert saver.last_saved == 10
        return outcomes

    def release() -> None:
        changed.wait()
        gate.set()

    releaser = threading.Thread(target=release)
    releaser.start()
    for outcomes in on_ranks(world_size, work):
        (outcome,) = outcomes
        assert (outcome.step, outcome.failure, outcome.attempts, outcome.warnings) == (10, None, 1, [])
        assert outcome.path == tmp_path / step_name(10)
        assert outcome.size_bytes == sum(file.stat().st_size for file in outcome.path.rglob("*.safetensors"))
        assert outcome.pause_seconds > 0
        assert outcome.write_seconds > 0
    releaser.join()
    path = tmp_path / step_name(10)
    manifest = verify(path)
    assert manifest.metrics == {"eval/loss": 0.5}
    assert manifest.metadata == {"model": {"depths": [2]}}
    assert read_state(path) == {"losses": [1.0]}
    assert_equal(loaded(path, ema=ema), full_tensors(ema=ema))


@pytest.mark.parametrize("background", [True, False])
def test_one_save_after_the_other(tmp_path: Path, background: bool) -> None:
    def work(ranks: ThreadRanks) -> list[Outcome]:
        saver = Saver(tmp_path, ranks, policy(background=background, keep_last=9))
        for step in (10, 20, 30):
            begin(saver, step, ranks.rank, 2, ema=True)
        return saver.finish()

    for outcomes in on_ranks(2, work):
        assert [(outcome.step, outcome.failure) for outcome in outcomes] == [(10, None), (20, None), (30, None)]
    for step in (10, 20, 30):
        verify(tmp_path / step_name(step))
        assert_equal(loaded(tmp_path / step_name(step), ema=True), full_tensors(step, ema=True))


def test_at_most_one_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returned, early = threading.Event(), []
    # Were the second `begin` not to wait, it would return while the first save is held here.
    spy_on_writes(monkeypatch, lambda path: early.append(returned.wait(0.3)) if step_name(10) in str(path) else None)
    saver = Saver(tmp_path, thread_ranks(1)[0], policy())
    begin(saver, 10, 0, 1)
    begin(saver, 20, 0, 1)
    returned.set()
    saver.close()
    assert early == [False, False]
    assert_equal(loaded(tmp_path / step_name(10)), full_tensors(10))


def test_without_a_background_all_is_done_when_begin_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostCopy, "take", lambda *_: pytest.fail("no copy is needed"))
    saver = Saver(tmp_path, thread_ranks(1)[0], policy(background=False))
    begin(saver, 10, 0, 1)
    assert saver.last_saved == 10
    verify(tmp_path / step_name(10))
    (outcome,) = saver.poll()
    assert outcome.pause_seconds >= outcome.write_seconds > 0


def fail_on(monkeypatch: pytest.MonkeyPatch, rank: int, times: int) -> tuple[Counter[str], list[Path]]:
    """Let the writes of a rank fail N times; count the files written, and collect the directories."""
    written, directories, failures = Counter(), [], []

    def before(path: Path) -> None:
        if f"rank-{rank:05d}" in path.name and len(failures) < times:
            failures.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")

    def after(path: Path) -> None:
        written[f"{path.parent.name}/{path.name[:10]}"] += 1
        directories.append(path.parent.parent)

    spy_on_writes(monkeypatch, before, after)
    return written, directories


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_failure_on_one_rank_is_tried_again_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rank: int, background: bool
) -> None:
    written, directories = fail_on(monkeypatch, failing_rank, 1)

    def work(ranks: ThreadRanks) -> list[Outcome]:
        saver = Saver(tmp_path, ranks, policy(background=background))
        begin(saver, 10, ranks.rank, 2)
        return saver.finish()

    for outcomes in on_ranks(2, work):
        (outcome,) = outcomes
        assert outcome.failure is None
        assert outcome.attempts == 2
        assert outcome.warnings == [f"attempt 1 failed: rank {failing_rank}: {NO_SPACE.format(tmp_path)}"]
    other = 1 - failing_rank
    assert written == {
        f"model/rank-{failing_rank:05d}": 1,
        f"optimizer/rank-{failing_rank:05d}": 1,
        f"model/rank-{other:05d}": 2,
        f"optimizer/rank-{other:05d}": 2,
    }
    assert len(set(directories)) == 2
    verify(tmp_path / step_name(10))
    assert_equal(loaded(tmp_path / step_name(10)), full_tensors(10))
    assert names(tmp_path) == [step_name(10)]


def test_a_failure_for_good_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(saver_module.time, "sleep", waits.append)

    def work(ranks: ThreadRanks) -> tuple[list[Outcome], int | None]:
        saver = Saver(tmp_path, ranks, policy(retries=2, retry_seconds=7.0, keep_last=1))
        begin(saver, 10, ranks.rank, 2)
        saver.close()
        barrier.wait()
        begin(saver, 20, ranks.rank, 2)
        return saver.finish(), saver.last_saved

    barrier = threading.Barrier(2, lambda: fail_on(monkeypatch, 1, 99), timeout=PATIENCE)
    for outcomes, last_saved in on_ranks(2, work):
        first, second = outcomes
        assert first.failure is None
        assert second.failure == f"rank 1: {NO_SPACE.format(tmp_path)}"
        assert second.attempts == 3
        assert second.warnings == [f"attempt {number} failed: {second.failure}" for number in (1, 2)]
        assert second.size_bytes == 0
        assert last_saved == 10
    assert waits == [7.0] * 4
    assert names(tmp_path) == [step_name(10)]
    verify(tmp_path / step_name(10))


def test_after_a_failure_the_next_save_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, 0, 1)
    saver = Saver(tmp_path, thread_ranks(1)[0], policy(retries=0))
    begin(saver, 10, 0, 1)
    begin(saver, 20, 0, 1)
    first, second = saver.finish()
    assert first.failure is not None
    assert second.failure is None
    assert saver.last_saved == 20
    assert names(tmp_path) == [step_name(20)]


@pytest.mark.parametrize("lost", ["before", "while writing"])
def test_a_lost_rank_is_a_failure_and_not_tried_again(tmp_path: Path, lost: str) -> None:
    class Lonely(ThreadRanks):
        def gather(self, value: Any) -> list[Any]:
            if lost == "before" or threading.current_thread().name == "saver":
                raise RuntimeError("Connection closed by peer")
            return [value] * 2

    saver = Saver(tmp_path, Lonely(0, 2, [], threading.Barrier(2)), policy(retries=5))
    begin(saver, 10, 0, 2)
    (outcome,) = saver.finish()
    assert outcome.failure == "RuntimeError: Connection closed by peer"
    assert outcome.attempts == (0 if lost == "before" else 1)
    assert outcome.pause_seconds > 0
    assert saver.last_saved is None
    assert names(tmp_path) == []
    saver.close()


def test_a_directory_that_vanished_is_made_again(tmp_path: Path) -> None:
    saver = Saver(tmp_path / "run" / "checkpoints", thread_ranks(1)[0], policy())
    begin(saver, 10, 0, 1)
    saver.close()
    shutil.rmtree(tmp_path / "run")
    begin(saver, 20, 0, 1)
    assert [outcome.failure for outcome in saver.finish()] == [None, None]
    verify(tmp_path / "run" / "checkpoints" / step_name(20))


def test_the_writing_and_its_retries_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def watch() -> Iterator[None]:
        events.append(f"in {threading.current_thread().name}")
        yield
        events.append("out")

    fail_on(monkeypatch, 0, 1)
    monkeypatch.setattr(saver_module.time, "sleep", lambda seconds: events.append("wait"))
    saver = Saver(tmp_path, thread_ranks(1)[0], policy(), watch=watch)
    begin(saver, 10, 0, 1)
    saver.close()
    assert events == ["in saver", "wait", "out"]


def test_the_main_rank_prunes_once_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[str]]] = []
    real = saver_module.prune

    def spied(directory: Path, *arguments: Any) -> list[str]:
        seen.append((verify(list_checkpoints(directory)[0]).step, names(directory)))
        return real(directory, *arguments)

    monkeypatch.setattr(saver_module, "prune", spied)

    def work(ranks: ThreadRanks) -> list[Outcome]:
        saver = Saver(tmp_path, ranks, policy(keep_last=1, keep_best=1), protected=lambda: [step_name(20)])
        for step in (10, 20, 30, 40):
            begin(saver, step, ranks.rank, 2, metrics={"eval/loss": float(step)})
        return saver.finish()

    for outcomes in on_ranks(2, work):
        assert all(outcome.failure is None and outcome.warnings == [] for outcome in outcomes)
    assert [step for step, _ in seen] == [10, 20, 30, 40]
    assert names(tmp_path) == [step_name(step) for step in (10, 20, 40)]


def test_a_broken_later_one_does_not_cost_the_one_just_saved(tmp_path: Path) -> None:
    write(tmp_path, 30, 1)
    file = next((tmp_path / step_name(30)).glob("model/*"))
    file.write_bytes(bytes(file.stat().st_size))  # as long as before: only the hash tells
    saver = Saver(tmp_path, thread_ranks(1)[0], policy(keep_last=1))
    begin(saver, 20, 0, 1)
    saver.close()
    (found,) = on_ranks(1, lambda ranks: newest_valid(tmp_path, ranks))
    assert found.path == tmp_path / step_name(20)


def test_damaged_checkpoints_do_not_count_until_they_are_saved_again(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, 1)
    file = next((tmp_path / step_name(30)).glob("model/*"))
    file.write_bytes(bytes(file.stat().st_size))
    (found,) = on_ranks(1, lambda ranks: newest_valid(tmp_path, ranks))
    saver = Saver(tmp_path, thread_ranks(1)[0], policy(keep_last=2), damaged=found.damaged)
    begin(saver, 25, 0, 1)
    saver.close()
    assert names(tmp_path) == [step_name(step) for step in (20, 25, 30)]
    begin(saver, 30, 0, 1)
    saver.close()
    assert names(tmp_path) == [step_name(step) for step in (25, 30)]
    assert saver.damaged == set()
    verify(tmp_path / step_name(30))


@pytest.mark.parametrize("where", ["prune", "protected"])
def test_trouble_with_old_checkpoints_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fail(*_: object) -> list[str]:
        raise OSError(errno.EACCES, "Permission denied")

    if where == "prune":
        monkeypatch.setattr(saver_module, "prune", fail)
    saver = Saver(tmp_path, thread_ranks(1)[0], policy(), protected=fail if where == "protected" else tuple)
    begin(saver, 10, 0, 1)
    (outcome,) = saver.finish()
    assert outcome.failure is None
    assert outcome.warnings == ["removing surplus checkpoints failed: [Errno 13] Permission denied"]
    assert saver.last_saved == 10


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


def test_a_process_that_fails_does_not_wait_for_its_save(tmp_path: Path) -> None:
    script = f"""
import threading
from pathlib import Path
from tests.checkpoint.test_saver import Saver, begin, policy
class Stuck:
    rank, world_size = 0, 2
    def gather(self, value):
        if threading.current_thread() is threading.main_thread():
            return [value] * 2
        threading.Event().wait()
    broadcast = gather
begin(Saver(Path({str(tmp_path)!r}), Stuck(), policy()), 10, 0, 2)
raise KeyError("the run failed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "the run failed" in done.stderr


def test_a_thread_that_cannot_start_leaves_the_writing_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    saver = Saver(tmp_path, thread_ranks(1)[0], policy())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    begin(saver, 1, 0, 1)
    monkeypatch.undo()
    (outcome,) = saver.finish()
    assert outcome.failure is None
    assert "can't start new thread" in outcome.warnings[0]
    assert saver.last_saved == 1
    verify(tmp_path / step_name(1))


@pytest.mark.parametrize(
    ("keep_last", "rooms", "early", "kept", "failed"),
    [
        (3, [False, True], [], [2, 3, 4], False),
        (3, [False, False, False], [1], [2, 3], True),
        (2, [False, False, True], [1, 2], [3, 4], False),
        (1, [False, False, False], [1, 2], [3], True),
        (1, [False, True], [1, 2], [4], False),
        (3, [True], [], [2, 3, 4], False),
    ],
)
def test_old_checkpoints_make_room_where_they_would_go_anyway(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep_last: int,
    rooms: list[bool],
    early: list[int],
    kept: list[int],
    failed: bool,
) -> None:
    """The newest complete one stays. What the policy no longer keeps goes first, as after a lower keep_last."""
    before = Saver(tmp_path, thread_ranks(1)[0], policy(keep_last=9))
    for step in (1, 2, 3):
        begin(before, step, 0, 1)
        before.finish()
    answers = iter(rooms)
    monkeypatch.setattr(saver_module, "has_space", lambda *_: next(answers, rooms[-1]))
    monkeypatch.setattr("swinv2_train.checkpoint.disk.has_space", lambda *_: not failed)
    saver = Saver(tmp_path, thread_ranks(1)[0], policy(keep_last=keep_last, retries=0))
    begin(saver, 4, 0, 1)
    (outcome,) = saver.finish()
    assert (outcome.failure is not None) == failed
    assert names(tmp_path) == [step_name(step) for step in kept]
    if failed:
        assert "free: make room: " in outcome.failure
        assert ("lower checkpoint.keep_last" in outcome.failure) == (keep_last > 1)
    text = " ".join(outcome.warnings)
    assert [step for step in (1, 2, 3) if step_name(step) in text] == early


def test_a_check_that_fails_fails_the_save_before_anything_is_written(tmp_path: Path) -> None:
    def check() -> None:
        raise CheckpointError("run.dir was moved")

    saver = Saver(tmp_path / "checkpoints", thread_ranks(1)[0], policy(retries=0), check=check)
    begin(saver, 1, 0, 1)
    (outcome,) = saver.finish()
    assert outcome.failure == "run.dir was moved"
    assert names(tmp_path) == []
