"""Which checkpoints are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from swinv2_train.checkpoint.layout import PARTIAL_PREFIX, list_checkpoints, step_of


def surplus(directory: Path, *, keep_last: int, keep_every_steps: int) -> list[Path]:
    """The checkpoints that a policy lets go of: all but the newest ones and every k-th."""
    older = list_checkpoints(directory)[keep_last:]
    return [path for path in older if not keep_every_steps or (step_of(path) or 0) % keep_every_steps]


def prune(directory: Path, *, keep_last: int, keep_every_steps: int) -> list[str]:
    """Remove surplus checkpoints and what crashes left behind; return the names. One rank calls it.

    A checkpoint first loses its valid name, so that a crash in the middle leaves nothing that looks whole.
    """
    removed = []
    for path in surplus(directory, keep_last=keep_last, keep_every_steps=keep_every_steps):
        doomed = path.rename(path.with_name(f"{PARTIAL_PREFIX}removed-{path.name}"))
        shutil.rmtree(doomed, ignore_errors=True)
        removed.append(path.name)
    for left in directory.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    return removed
