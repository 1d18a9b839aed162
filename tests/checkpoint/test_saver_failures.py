"""Saves that fail: tried again, reported, and never at the cost of an older one."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint import saver as saver_module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import step_name
from swinv2_train.checkpoint.saver import Outcome, Saver
from swinv2_train.checkpoint.verify import verify
from tests.checkpoint.ranks import ThreadRanks, assert_equal, full_tensors, loaded, on_ranks, thread_ranks
from tests.checkpoint.savers import NO_SPACE, PATIENCE, begin, fail_on, names, policy


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


@pytest.mark.slow
def test_a_process_that_fails_does_not_wait_for_its_save(tmp_path: Path) -> None:
    script = f"""
import threading
from pathlib import Path
from swinv2_train.checkpoint.saver import Saver
from tests.checkpoint.savers import begin, policy
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


def test_a_check_that_fails_fails_the_save_before_anything_is_written(tmp_path: Path) -> None:
    def check() -> None:
        raise CheckpointError("run.dir was moved")

    saver = Saver(tmp_path / "checkpoints", thread_ranks(1)[0], policy(retries=0), check=check)
    begin(saver, 1, 0, 1)
    (outcome,) = saver.finish()
    assert outcome.failure == "run.dir was moved"
    assert names(tmp_path) == []
