"""One run at a time in a run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from swinv2_train.config.errors import ConfigError


class RunLock:
    """Holds `<run>/.lock` until `release` or the end of the process, however it ends.

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

    def release(self) -> None:
        os.close(self._file)
