"""Helpers of the tests of the saver: saves of synthetic tensors, and writes that are observed or fail."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.checkpoint import save as save_module
from swinv2_train.checkpoint.saver import Saver
from swinv2_train.config.schema import CheckpointConfig
from tests.checkpoint.ranks import full_tensors, shards

NO_SPACE = "{} cannot be written (No space left on device; make room there, or choose another path)"
PATIENCE = 30.0
"""Seconds after which something that must happen has not."""


def policy(**values: Any) -> CheckpointConfig:
    return CheckpointConfig(**{"retry_seconds": 0.0, **values})


def begin(saver: Saver, step: int, rank: int, world_size: int, *, ema: bool = False, **content: Any) -> None:
    """Save the tensors of seed `step`."""
    pieces = iter(shards(full_tensors(step, ema=ema), rank, world_size))
    saver.begin(step, fragments=pieces, **{"state": {"step": step}, "metadata": {}, "metrics": {}, **content})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def spy_on_writes(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], object], after: Callable[[Path], object] = lambda _: None
) -> None:
    real = save_module.write_safetensors

    def spied(path: Path, *arguments: Any) -> Any:
        before(path)
        written = real(path, *arguments)
        after(path)
        return written

    monkeypatch.setattr(save_module, "write_safetensors", spied)


def fail_on(monkeypatch: pytest.MonkeyPatch, rank: int, times: int) -> tuple[Counter[str], list[Path]]:
    """Let the writes of a rank fail N times; count the files written, and collect the directories."""
    written, directories, failures = Counter(), [], []

    def before(path: Path) -> None:
        if f"rank-{rank:05d}" in path.name and len(failures) < times:
            failures.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")

    def after(path: Path) -> None:
        written[f"{path.parent.name}/{path.name[:10]}"] += 1
        directories.append(path.parent.parent)

    spy_on_writes(monkeypatch, before, after)
    return written, directories
