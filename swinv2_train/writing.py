"""Writing a file so that it is either complete or absent, even on a full disk."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_bytes(path: Path, data: bytes | Iterable[bytes], *, flush: bool = False) -> None:
    """Replace a file atomically: a reader, or a crash, sees either the old content or the new, never a partial file.

    A device or a pipe, such as /dev/stdout, is written to directly; a link is followed.

    Args:
        data: the content, or its parts if it is large.
        flush: sync the content to disk before renaming the file, so that it survives a power failure.

    Raises:
        OSError: naming `path`, if it cannot be written; the old content is still there.
    """
    parts = [data] if isinstance(data, bytes) else data
    if path.exists() and not path.is_file():
        try:
            with path.open("wb") as file:
                file.writelines(parts)
        except OSError as error:
            error.filename = str(path)
            raise
        return
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.writelines(parts)
        if flush:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a new file next to `path`, which replaces it at the end of the block; a link is followed.

    After an exception, the new file is removed and the old one is still there.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    target = path.resolve() if path.is_symlink() else path
    # Ranks, and hosts that share a disk, may write at the same time. Do not use tempfile: its files are private.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a failed write names no file, and the temporary name is of no use to the user
            error.filename = str(path)
        raise
