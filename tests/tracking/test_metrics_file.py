"""metrics.jsonl: strict JSON, each step once after a resume, and nothing lost while a disk is full."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.tracking.metrics_file import MetricsFile


def strict(text: str) -> dict:
    """Parse JSON as a strict parser does: without the NaN and Infinity of Python's dialect."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read(path: Path) -> list[dict]:
    return [strict(line) for line in path.read_text().splitlines()]


def test_every_record_is_one_line_of_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).append([{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan, "grad_norm": -math.inf}])
    assert read(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "grad_norm": None}]


def test_resume_drops_steps_and_evaluations_past_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).append(
        [{"step": 0, "eval/loss": 3.0}]
        + [{"step": step, "loss": 1 / step} for step in range(1, 8)]
        + [{"step": 4, "eval/loss": 2.0}, {"step": 7, "eval/loss": 1.0}]
    )
    resumed = MetricsFile(path, 4)
    resumed.append([{"step": 5, "loss": 9.0}])
    assert (resumed.dropped_lines, resumed.missing_steps) == (4, 0)
    assert [(r["step"], *(k for k in r if k != "step")) for r in read(path)] == [
        (0, "eval/loss"), *((step, "loss") for step in range(1, 5)), (4, "eval/loss"), (5, "loss")
    ]  # fmt: skip
    assert read(path)[-1]["loss"] == 9.0


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2, "loss": 0.1', b"\x00\x00\x00", b'"step"', b"7\n"])
def test_a_line_torn_by_a_crash_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + torn)
    resumed = MetricsFile(path, 10)
    resumed.append([{"step": 11, "loss": 0.25}])
    assert [record["step"] for record in read(path)] == [1, 11]
    assert (resumed.dropped_lines, resumed.missing_steps) == (1, 9)


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 0.5}')
    MetricsFile(path, 1).append([{"step": 2, "loss": 0.25}])
    assert [record["step"] for record in read(path)] == [1, 2]


def test_a_run_from_the_beginning_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).append([{"step": 0, "eval/loss": 3.0}, {"step": 1, "loss": 0.5}])
    MetricsFile(path, 0)
    assert path.read_text() == ""


def test_a_crash_while_truncating_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).append([{"step": step, "loss": 0.5} for step in range(1, 6)])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("swinv2_train.tracking.metrics_file.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        MetricsFile(path, 2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_at_the_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("swinv2_train.writing.os.fsync", full)
    with pytest.raises(OSError, match=r"cannot write the metrics: No space left on device; make room") as caught:
        MetricsFile(path, 1)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)


def rows(*steps: int, loss: float = 0.5) -> list[dict]:
    return [{"step": step, "loss": loss} for step in steps]


def test_what_cannot_be_written_waits_in_order(tmp_path: Path) -> None:
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "aside"
    metrics = MetricsFile(path, 0)
    metrics.append(rows(1))
    path.rename(aside)
    path.symlink_to("/dev/full")
    for step in (2, 3):
        metrics.append(rows(step))
        assert (metrics.failure, metrics.waiting) == ("No space left on device", step - 1)
    path.unlink()
    aside.rename(path)
    metrics.append(rows(4))
    assert (metrics.failure, metrics.waiting) == (None, 0)
    assert read(path) == rows(1, 2, 3, 4)
    metrics.settle()
    assert read(path) == rows(1, 2, 3, 4)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of this process's files to N bytes: a write is cut off there, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 24, 25, 26, 49, 50])  # a line has 25 bytes
def test_a_write_that_was_cut_off_leaves_whole_lines_only(tmp_path: Path, room: int) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.append(rows(1))
    size = path.stat().st_size
    with largest_file(size + room):
        metrics.append(rows(2, 3))
    assert (metrics.failure is None) == (room == 50)
    assert read(path) == (rows(1, 2, 3) if room == 50 else rows(1))
    metrics.append(rows(4))
    assert read(path) == rows(1, 2, 3, 4)


def test_what_a_write_has_left_is_cut_off_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.append(rows(1))
    size = path.stat().st_size

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, largest_file(size + 30):
        patch.setattr(os, "truncate", fail)
        metrics.append(rows(2, 3))
        assert path.stat().st_size == size + 30
        metrics.append(rows(4))
        assert (metrics.failure, metrics.waiting) == ("Input/output error", 3)
    metrics.append(rows(5))
    assert read(path) == rows(1, 2, 3, 4, 5)


def test_an_error_while_closing_the_file_repeats_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system over the network may say only then that its disk is full."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.append(rows(1))
    real = Path.open

    @contextmanager
    def closing_late(*arguments: Any, **options: Any) -> Iterator[Any]:
        with real(*arguments, **options) as file:
            yield file
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closing_late)
        metrics.append(rows(2))
    assert (metrics.failure, metrics.waiting) == ("Disk quota exceeded", 1)
    assert read(path) == rows(1)
    metrics.append(rows(3))
    assert read(path) == rows(1, 2, 3)


def test_going_back_drops_lines_that_wait_as_well(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.append(rows(1, 2, 3))
    with largest_file(path.stat().st_size):
        metrics.append(rows(4, 5, 6))
        metrics.rewind(5)
        assert metrics.waiting == 2
    metrics.settle()
    assert read(path) == rows(1, 2, 3, 4, 5)


def test_going_back_waits_for_room_and_spares_what_comes_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.append(rows(1, 2, 3, 4, 5))
    with largest_file(30):
        metrics.append(rows(6))
        metrics.rewind(2)
        assert (metrics.failure, metrics.waiting) == ("File too large", 0)
        metrics.append(rows(3, 4, loss=0.25))
        metrics.rewind(3)
        assert read(path) == rows(1, 2, 3, 4, 5)
    metrics.append(rows(4, loss=0.125))
    assert read(path) == [*rows(1, 2), *rows(3, loss=0.25), *rows(4, loss=0.125)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_away_for_a_while_is_not_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    metrics = MetricsFile(path, 0)
    metrics.append(rows(1, 2, 3))
    path.parent.rename(tmp_path / "away")
    metrics.rewind(1)
    metrics.append(rows(2, loss=0.25))
    assert (metrics.failure, metrics.waiting) == ("No such file or directory", 1)
    (tmp_path / "away").rename(path.parent)
    metrics.settle()
    assert read(path) == [*rows(1), *rows(2, loss=0.25)]
