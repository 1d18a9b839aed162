"""One run at a time in a run directory, if the file system supports locks."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems without locks, such as Lustre mounted without `flock`."""
_LOCK_FILE = ".lock"
_START_FILE = ".start.lock"
_TRIES, _PAUSE_SECONDS = 3, 0.1
"""Seconds to retry: a process that only checks (`is_held`) holds the lock for a moment."""


class RunLock:
    """Lock of the training process, `<run>/.lock`: held until `release` or the end of the process, however it ends.

    On a file system without locks it locks nothing, because a run is worth more than this check.

    Raises:
        ConfigError: if another process holds it.
    """

    file = _LOCK_FILE

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(self._file)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigError(
                "run.dir",
                directory,
                "another process is training in this directory; wait for it, stop it, or use another run.dir",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(self._file)
                raise

    def release(self) -> None:
        os.close(self._file)


class StartLock(RunLock):
    """Lock of the command that starts a run and reports its outcome, `<run>/.start.lock`.

    Ranks that the command starts hold the `RunLock`, and release it before the command has read the result of the run.
    """

    file = _START_FILE


def check_free(directory: Path) -> None:
    """Reject a directory that a command or a rank is using.

    Raises:
        ConfigError: if one is.
        OSError: if the lock files cannot be opened.
    """
    for lock in (StartLock, RunLock):
        lock(directory).release()


def _lock(file: int) -> None:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_PAUSE_SECONDS)


def check_in_place(directory: Path) -> None:
    """Check that the directory of an active run still exists.

    Another process may have created a directory of the same name; only this run's own contains its lock.

    Raises:
        CheckpointError: if it was moved or removed.
    """
    if not (directory / _LOCK_FILE).exists():
        raise CheckpointError(
            f"run.dir={directory} was moved or removed during the run: move it back, or set run.dir to its new place, "
            "and rerun the same command; it resumes from the newest checkpoint there"
        )


def is_held(directory: Path) -> bool | None:
    """Return whether a process holds the `RunLock` of a directory; None on a file system without locks.

    Raises:
        OSError: if the lock file cannot be accessed.
    """
    try:
        file = os.open(directory / _LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(
            file, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # shared, so that two checks do not mistake each other for a run
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    finally:
        os.close(file)
    return False
