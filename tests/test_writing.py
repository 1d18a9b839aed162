"""Files are complete or not there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from swinv2_train.writing import write_bytes


def test_content_is_replaced_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path, data in ((tmp_path / "file", b"old"), (tmp_path / "link", b"new")):
        write_bytes(path, data)
        assert (tmp_path / "file").read_bytes() == data
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_failure_leaves_the_old_content_and_nothing_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_: object) -> Iterator[bytes]:
        yield b"n"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as of_writing:
        write_bytes(path, full())
    monkeypatch.setattr("swinv2_train.writing.os.fsync", lambda *_: list(full()))
    with pytest.raises(OSError, match="No space left") as of_flushing:
        write_bytes(path, b"new", flush=True)
    assert of_writing.value.filename == of_flushing.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"data")
    reader.join(10)
    assert read == [b"data"]
    assert pipe.is_fifo()
