"""One run at a time in a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.launch.lock import RunLock, StartLock, check_free, is_held


def test_a_directory_that_is_in_use_is_refused_until_it_is_released(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    with pytest.raises(ConfigError, match="another process is training in this directory"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()


def test_a_directory_is_free_when_neither_command_nor_rank_is_at_work(tmp_path: Path) -> None:
    check_free(tmp_path)
    for kind in (StartLock, RunLock):
        lock = kind(tmp_path)
        with pytest.raises(ConfigError, match="another process is training in this directory"):
            check_free(tmp_path)
        lock.release()
    start, run = StartLock(tmp_path), RunLock(tmp_path)  # a command, and the rank that it has started
    start.release()
    run.release()
    check_free(tmp_path)


def test_one_can_look_without_taking_it(tmp_path: Path) -> None:
    assert is_held(tmp_path) is False
    assert not list(tmp_path.iterdir())
    lock = RunLock(tmp_path)
    assert is_held(tmp_path) is True
    lock.release()
    assert is_held(tmp_path) is False


def test_those_who_look_do_not_take_each_other_for_a_run_nor_keep_one_from_starting(tmp_path: Path) -> None:
    RunLock(tmp_path).release()
    looking = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert is_held(tmp_path) is False
    threading.Timer(0.05, os.close, [looking]).start()
    lock = RunLock(tmp_path)
    assert is_held(tmp_path) is True
    lock.release()


def test_a_file_system_without_locks_does_not_keep_a_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = RunLock(tmp_path)
    assert is_held(tmp_path) is None
    lock.release()


def test_a_disk_that_fails_is_not_taken_for_one_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(tmp_path)
