"""File system operations of checkpoints: hashes, flushing, free space, and replacing a directory."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path

from swinv2_train.checkpoint.errors import CheckpointError

REPLACED_PREFIX = ".replaced-"
"""Prefix of a checkpoint that is being replaced by another one of the same step."""
BLOCK = 1 << 22
"""Number of bytes to read or write, and hash, at a time."""
_MARGIN = 1 << 20
"""Bytes reserved for headers, manifest, and state, in addition to a hundredth of the total."""
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Flush a file or directory to disk.

    Raises:
        OSError: if that fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems (FUSE, SMB) cannot flush directories, and report that with different errors.
        if error.errno not in _CANNOT_FLUSH or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def human(size: int) -> str:
    """Return a number of bytes for display."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def existing(path: Path) -> Path:
    """Return a path, or the closest place above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def has_space(directory: Path, size: int) -> bool:
    """Return whether `size` bytes and a small margin fit into a directory."""
    usage = shutil.disk_usage(directory)
    # Some network file systems report a size of 0.
    return not usage.total or usage.free >= size + size // 100 + _MARGIN


def check_space(directory: Path, size: int, hint: str) -> None:
    """Check that a number of bytes, and a small margin, fit into a directory.

    Args:
        directory: need not exist yet.
        hint: for the message, what else the user can do other than making room.

    Raises:
        CheckpointError: if not.
    """
    directory = existing(directory)
    if not has_space(directory, size):
        free = human(shutil.disk_usage(directory).free)
        raise CheckpointError(f"{human(size)} must be written, and {directory} has {free} free: make room: {hint}")


def restore_replaced(directory: Path) -> None:
    """Undo or finish the replacement of a checkpoint that a crash interrupted. Only the main rank calls it.

    Raises:
        OSError: if the directory cannot be written to.
    """
    for aside in sorted(directory.glob(f"{REPLACED_PREFIX}*")):
        final = aside.with_name(aside.name.removeprefix(REPLACED_PREFIX))
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)
