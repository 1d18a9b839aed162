"""Writing a file so that it is complete or not there, also on a full disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one go: a reader, and a crash, see the old content or the new. Nothing partial is left.

    A device or a pipe, such as /dev/stdout, is written to as it is; a link is followed.

    Raises:
        OSError: if it cannot be written; the old content is still there.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    target = path.resolve() if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")  # ranks may write at the same time
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
