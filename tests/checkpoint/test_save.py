"""Writing a checkpoint is all or nothing, whatever happens to whichever rank."""

from __future__ import annotations

import errno
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from swinv2_train.checkpoint import save as save_module
from swinv2_train.checkpoint.disk import REPLACED_PREFIX
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import list_checkpoints, rank_file, read_manifest, step_name
from swinv2_train.checkpoint.save import Saved, save
from swinv2_train.checkpoint.verify import newest_valid, verify
from tests.checkpoint.ranks import (
    SHAPES,
    ThreadRanks,
    assert_equal,
    full_tensors,
    loaded,
    on_ranks,
    shards,
    thread_ranks,
    write,
)


class Crash(BaseException):
    """The process is gone: no handler of the code under test may run into it."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_verifies_and_leaves_nothing_else(tmp_path: Path, ema: bool) -> None:
    outcomes = write(tmp_path, 10, ema=ema, metrics={"eval/loss": 0.25})
    path = tmp_path / step_name(10)
    manifest = verify(path)
    assert manifest.world_size == 2
    assert manifest.has_ema is ema
    assert manifest.metrics == {"eval/loss": 0.25}
    assert {"torch", "deepspeed", "swinv2-train"} == manifest.versions.keys()
    assert names(tmp_path) == [step_name(10)]
    size = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    assert outcomes == [Saved(path, size)] * 2


def test_files_are_those_of_the_safetensors_library_and_readable_by_all_whom_the_umask_lets(tmp_path: Path) -> None:
    write(tmp_path, 10, 1, ema=True)
    path, expected = tmp_path / step_name(10), full_tensors(ema=True)
    for kind, prefix, part in (
        ("model", "", "weight"),
        ("optimizer", "exp_avg/", "exp_avg"),
        ("optimizer", "exp_avg_sq/", "exp_avg_sq"),
        ("ema", "", "ema"),
    ):
        file = path / rank_file(kind, 0, 1)
        tensors = load_file(file)
        for name in SHAPES:
            assert torch.equal(tensors[f"{prefix}{name}@0"], expected[name][part])
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((path / "state.json").stat().st_mode)


def test_a_rank_that_owns_nothing_writes_nothing(tmp_path: Path) -> None:
    tensors = full_tensors()

    def work(ranks: ThreadRanks) -> Saved:
        pieces = shards(tensors, 0, 1) if ranks.rank == 0 else iter(())
        return save(tmp_path, 10, fragments=pieces, state={}, metadata={}, ranks=ranks)

    on_ranks(2, work)
    assert [record.path for record in verify(tmp_path / step_name(10)).files] == [
        rank_file("model", 0, 2),
        rank_file("optimizer", 0, 2),
        "state.json",
    ]


def disk_full_on(monkeypatch: pytest.MonkeyPatch, failing_rank: int) -> None:
    real = save_module.write_safetensors

    def write_or_fail(path: Path, *arguments: object) -> object:
        if f"rank-{failing_rank:05d}" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments)

    monkeypatch.setattr(save_module, "write_safetensors", write_or_fail)


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_failed_write_fails_everywhere_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rank: int
) -> None:
    write(tmp_path, 10)
    disk_full_on(monkeypatch, failing_rank)
    for outcome in write(tmp_path, 20):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == (
            f"rank {failing_rank}: {tmp_path} "
            "cannot be written (No space left on device; make room there, or choose another path)"
        )
    monkeypatch.undo()
    assert names(tmp_path) == [step_name(10)]
    verify(tmp_path / step_name(10))
    write(tmp_path, 20)
    verify(tmp_path / step_name(20))


def test_a_failure_of_many_ranks_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(save_module, "write_safetensors", fail)
    (said,) = {str(outcome) for outcome in write(tmp_path, 10, 3)}
    assert said.startswith(f"rank 0: {tmp_path} cannot be written (Disk quota exceeded; make room there")
    assert said.endswith(") (and 2 more)")


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_an_error_of_any_kind_on_one_rank_ends_the_others_too(tmp_path: Path, failing_rank: int) -> None:
    def work(ranks: ThreadRanks) -> Saved:
        def pieces():
            yield from shards(full_tensors(), ranks.rank, 2)
            if ranks.rank == failing_rank:
                raise RuntimeError("CUDA error: an illegal memory access\nand a page of advice")

        return save(tmp_path, 10, fragments=pieces(), state={}, metadata={}, ranks=ranks)

    for outcome in on_ranks(2, work):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == f"rank {failing_rank}: RuntimeError: CUDA error: an illegal memory access"


def test_what_the_main_rank_cannot_write_down_ends_the_others_too(tmp_path: Path) -> None:
    def work(ranks: ThreadRanks) -> Saved:
        pieces = shards(full_tensors(), ranks.rank, 2)
        return save(tmp_path, 10, fragments=pieces, state={"odd": object()}, metadata={}, ranks=ranks)

    for outcome in on_ranks(2, work):
        assert isinstance(outcome, CheckpointError)
        assert "not JSON serializable" in str(outcome)
    assert names(tmp_path) == []


def test_an_average_of_only_some_fragments_is_refused(tmp_path: Path) -> None:
    pieces = shards(full_tensors(), 0, 2) + shards(full_tensors(ema=True), 1, 2)
    with pytest.raises(CheckpointError, match="only some fragments have a moving average"):
        save(tmp_path, 10, fragments=pieces, state={}, metadata={}, ranks=thread_ranks(1)[0])


@pytest.mark.parametrize("free_mib", [0, 1])
def test_too_little_space_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: float
) -> None:
    write(tmp_path, 10, 1)
    usage = SimpleNamespace(total=2**40, used=0, free=free_mib * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(save_module, "write_safetensors", lambda *_: pytest.fail("something was written"))
    needed = 3 * 4 * sum(torch.Size(shape).numel() for shape in SHAPES.values())
    for outcome in write(tmp_path, 20, 3):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == (
            f"{needed / 1024:.1f} KiB must be written, and {tmp_path} has {['0.0 KiB', '1.0 MiB'][free_mib]} free: "
            "make room: delete other files on this disk, or write to another directory"
        )
    assert names(tmp_path) == [step_name(10)]


def test_a_file_system_that_does_not_know_its_size_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    write(tmp_path, 10)
    verify(tmp_path / step_name(10))


def test_what_a_crash_left_makes_room(tmp_path: Path) -> None:
    (tmp_path / ".saving-step-00000010-ab12").mkdir()
    write(tmp_path, 20)
    assert names(tmp_path) == [step_name(20)]


def test_a_late_write_of_an_abandoned_job_does_not_reach_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = []
    real = save_module.write_safetensors
    monkeypatch.setattr(
        save_module,
        "write_safetensors",
        lambda path, *arguments: directories.append(path.parent.parent) or real(path, *arguments),
    )
    for _ in range(2):
        write(tmp_path, 10, 1)
    assert len(set(directories)) == 2


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    write(tmp_path, 10, seed=0)
    write(tmp_path, 10, seed=1)
    verify(tmp_path / step_name(10))
    assert_equal(loaded(tmp_path / step_name(10)), full_tensors(1))
    assert names(tmp_path) == [step_name(10)]


def fail_rename(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    real: Callable[[Path, Path], Path] = Path.rename
    count = 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == number:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_while_replacing_leaves_the_old_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write(tmp_path, 10, seed=0)
    fail_rename(monkeypatch, number, OSError(errno.ESTALE, "Stale file handle"))
    for outcome in write(tmp_path, 10, seed=1):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == "rank 0: Stale file handle"
    assert names(tmp_path) == [step_name(10)]
    assert_equal(loaded(tmp_path / step_name(10)), full_tensors(0))


@pytest.mark.parametrize("then", ["resume", "save again", "save another"])
def test_a_crash_between_the_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    write(tmp_path, 10, 1, seed=0)
    fail_rename(monkeypatch, 2, Crash())
    pieces = shards(full_tensors(1), 0, 1)
    with pytest.raises(Crash):
        save(tmp_path, 10, fragments=pieces, state={}, metadata={}, ranks=thread_ranks(1)[0])
    monkeypatch.undo()
    assert list_checkpoints(tmp_path) == []
    if then == "resume":
        for found in on_ranks(2, lambda ranks: newest_valid(tmp_path, ranks)):
            assert found.path == tmp_path / step_name(10)
            assert found.passed_over == []
        assert_equal(loaded(tmp_path / step_name(10)), full_tensors(0))
    else:
        step = 10 if then == "save again" else 20
        write(tmp_path, step, 1, seed=2)
        assert names(tmp_path) == sorted({step_name(10), step_name(step)})
        assert_equal(loaded(tmp_path / step_name(step)), full_tensors(2))
        verify(tmp_path / step_name(10))


def test_a_crash_right_after_the_two_renames_leaves_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 10, 1, seed=0)
    real = shutil.rmtree

    def rmtree(path: Path, **options: bool) -> None:
        if path.name.startswith(REPLACED_PREFIX):
            raise Crash
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    pieces = shards(full_tensors(1), 0, 1)
    with pytest.raises(Crash):
        save(tmp_path, 10, fragments=pieces, state={}, metadata={}, ranks=thread_ranks(1)[0])
    monkeypatch.undo()
    (found,) = on_ranks(1, lambda ranks: newest_valid(tmp_path, ranks))
    assert_equal(loaded(found.path), full_tensors(1))
    assert names(tmp_path) == [step_name(10)]


def test_the_manifest_keeps_what_it_was_given(tmp_path: Path) -> None:
    write(tmp_path, 10, metrics={"eval/loss": float("nan"), "eval/ema_loss": 1 / 3})
    metrics = read_manifest(tmp_path / step_name(10)).metrics
    assert metrics["eval/loss"] != metrics["eval/loss"]
    assert metrics["eval/ema_loss"] == 1 / 3
