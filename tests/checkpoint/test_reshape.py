"""A checkpoint of N ranks becomes one of M without a bit of it changing."""

from __future__ import annotations

import errno
import os
import re
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_train.checkpoint import consolidate, disk, pieces
from swinv2_train.checkpoint import reshape as module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import step_name
from swinv2_train.checkpoint.reshape import even_cut, reshape
from swinv2_train.checkpoint.survey import read_state
from swinv2_train.checkpoint.verify import verify
from swinv2_train.config.errors import ConfigError
from tests.checkpoint.written import STATE, read, values, write


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("cuts", [(), (0.3, 0.31, 0.9), (0.0, 0.5)])
@pytest.mark.parametrize("num_ranks", [1, 3, 60])
def test_the_content_is_the_same_to_the_bit(tmp_path: Path, ema: bool, cuts: tuple[float, ...], num_ranks: int) -> None:
    tensors = values(ema=ema)
    source = write(tmp_path / "source", tensors=tensors, cuts=cuts, metrics={"eval/loss": 0.5}, ema=ema)
    target = reshape(source, tmp_path / "out", num_ranks)
    assert target == tmp_path / "out" / step_name(10)
    expected = {(name, part): flat.numpy().tobytes() for name, parts in tensors.items() for part, flat in parts.items()}
    assert read(target) == read(source) == expected
    assert read_state(target) == STATE
    before, after = verify(source), verify(target)
    assert after.world_size == num_ranks
    assert after.has_ema is ema
    for key in ("step", "metadata", "shapes", "metrics", "versions"):
        assert getattr(after, key) == getattr(before, key), key


def test_there_and_back_gives_the_same_files(tmp_path: Path) -> None:
    first = reshape(write(tmp_path / "source"), tmp_path / "first", 2)
    second = reshape(reshape(first, tmp_path / "between", 5), tmp_path / "second", 2)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert [str(path) for path in files if path.parent.name == "ema"] == [
        "ema/rank-00000-of-00002.safetensors",
        "ema/rank-00001-of-00002.safetensors",
    ]
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)


def test_the_cut_is_even_and_leaves_nothing_out() -> None:
    shapes = {"a": [7], "scalar": [], "empty": [0, 3], "b": [5, 2]}
    owned = even_cut(shapes, 4)
    assert [sum(record.count for record in records) for records in owned] == [5, 5, 5, 3]
    assert [(record.name, record.start, record.count) for records in owned for record in records] == [
        ("a", 0, 5), ("a", 5, 2), ("scalar", 0, 1), ("b", 0, 2), ("b", 2, 5), ("b", 7, 3),
    ]  # fmt: skip
    assert all(record.rank == rank for rank, records in enumerate(owned) for record in records)


def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"big.weight": (3 << 10, 1 << 10), "small": (3,)}
    source = write(tmp_path / "source", shapes=shapes, cuts=(0.4,), ema=False)
    monkeypatch.setattr(pieces, "SLICE_ELEMENTS", 1 << 16)
    tracemalloc.start()
    try:
        target = reshape(source, tmp_path / "out", 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Hashing holds two blocks of 4 MiB; the whole is 36 MiB, and one of the files 24.
    assert peak < 10 << 20 < (target / "optimizer/rank-00000-of-00001.safetensors").stat().st_size / 2


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: _flip_a_byte(next(path.glob("optimizer/*"))), "has been changed"),
        (lambda path: _flip_a_byte(path / "state.json"), "state.json has been changed"),
        (lambda path: next(path.glob("ema/*")).unlink(), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is broken"),
    ],
)
def test_a_damaged_checkpoint_is_not_copied(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    source = write(tmp_path / "source")
    damage(source)
    with pytest.raises(CheckpointError, match=reason) as caught:
        reshape(source, tmp_path / "out", 2)
    assert str(caught.value).startswith(f"{source}: ")
    assert not (tmp_path / "out").exists()


def test_an_existing_target_is_refused_and_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    for name in ("step-00000010", ".saving-step-00000010"):
        existing = tmp_path / "out" / name
        existing.mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"{name} already exists"):
            reshape(source, tmp_path / "out", 2)
        assert list((tmp_path / "out").iterdir()) == [existing]
        existing.rmdir()
    with pytest.raises(ConfigError, match="is inside the checkpoint"):
        reshape(source, source / "model", 2)
    with pytest.raises(ConfigError, match="already exists"):
        reshape(source, source.parent, 2)
    verify(source)


@pytest.mark.parametrize("failing", ["write", "space", "interrupt", "verify"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, existed: bool
) -> None:
    source, out = write(tmp_path / "source"), tmp_path / "out"
    if existed:
        out.mkdir()
        (out / "mine").write_text("")
    error: type[BaseException] = CheckpointError
    if failing == "space":
        free = namedtuple("Usage", "total used free")(1000, 999, 1)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: free)
        reason = "KiB must be written, and"
    elif failing == "verify":  # the disk does not hold what was written
        real = module.write_safetensors

        def lying(path: Path, *arguments: object) -> object:
            written = real(path, *arguments)
            _flip_a_byte(path)
            return written

        monkeypatch.setattr(module, "write_safetensors", lying)
        reason = r"has been changed \(its hash differs\)"
    else:
        error = KeyboardInterrupt if failing == "interrupt" else CheckpointError
        raised = KeyboardInterrupt() if failing == "interrupt" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_sync, calls = os.fsync, []

        def failing_sync(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 3:
                raise raised
            real_sync(descriptor)

        monkeypatch.setattr(consolidate.os, "fsync", failing_sync)
        reason = None if failing == "interrupt" else re.escape("cannot be written (No space left on device")
    with pytest.raises(error, match=reason):
        reshape(source, out, 2)
    monkeypatch.undo()
    assert [path.name for path in out.iterdir()] == ["mine"] if existed else not out.exists()
    verify(reshape(source, out, 2))
