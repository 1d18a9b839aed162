"""One run at a time in a run directory, where the file system has locks."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from swinv2_train.config.errors import ConfigError

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""What file systems without locks answer, such as Lustre mounted without `flock`."""


class RunLock:
    """Holds `<run>/.lock` until `release` or the end of the process, however it ends.

    On a file system without locks it holds nothing, for a run is worth more than this check.

    Raises:
        ConfigError: if another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigError(
                "run.dir",
                directory,
                "another process is training in this directory; wait for it, stop it, or take another run.dir",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(self._file)
                raise

    def release(self) -> None:
        os.close(self._file)
