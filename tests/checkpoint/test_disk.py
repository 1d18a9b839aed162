"""Flushing where the file system cannot do all of it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from swinv2_train.checkpoint.disk import flush
from swinv2_train.checkpoint.layout import step_name
from swinv2_train.checkpoint.verify import verify
from tests.checkpoint.ranks import write


def refuse_directories(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let fsync of directories fail with an error number; counts the refusals."""
    refused, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return refused


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_that_cannot_flush_directories_is_saved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refused = refuse_directories(monkeypatch, number)
    assert not any(isinstance(outcome, Exception) for outcome in write(tmp_path, 10))
    assert refused
    verify(tmp_path / step_name(10))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_any_other_error_of_a_directory_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_directories(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        flush(tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_files_must_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)):
        flush(tmp_path / "file")
    assert all(isinstance(outcome, Exception) for outcome in write(tmp_path, 10))
