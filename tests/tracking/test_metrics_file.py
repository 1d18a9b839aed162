"""metrics.jsonl: strict JSON, each step once after a resume, and a full disk that is said so."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

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
    assert resumed.dropped_lines == 4
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
    assert resumed.dropped_lines == 1


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


def test_a_full_disk_ends_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write the metrics: No space left on device; make room") as caught:
        metrics.append([{"step": 1, "loss": 0.5}])
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
