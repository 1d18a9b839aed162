"""Saves in the background: the state at `begin`, one at a time, and what is kept after each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint import saver as saver_module
from swinv2_train.checkpoint.layout import list_checkpoints, step_name
from swinv2_train.checkpoint.saver import HostCopy, Outcome, Saver
from swinv2_train.checkpoint.survey import read_state
from swinv2_train.checkpoint.verify import newest_valid, verify
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
from tests.checkpoint.savers import PATIENCE, begin, names, policy, spy_on_writes


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
