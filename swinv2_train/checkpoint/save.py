"""Write a checkpoint: all or nothing.

Every rank writes the fragments it owns into a directory with a temporary name and flushes them to disk. The main rank
then adds state and manifest, and renames the directory. A crash at any moment leaves older checkpoints unchanged and
at most a directory that is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from swinv2_train.checkpoint.disk import BLOCK, REPLACED_PREFIX, check_space, flush, restore_replaced
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.identity import is_foreign
from swinv2_train.checkpoint.layout import (
    KINDS,
    MANIFEST,
    PARTIAL_PREFIX,
    STATE,
    FileRecord,
    FragmentRecord,
    Manifest,
    manifest_text,
    rank_file,
    step_name,
    tensor_key,
)
from swinv2_train.checkpoint.ranks import Ranks
from swinv2_train.checkpoint.tensor_file import write_safetensors
from swinv2_train.shortage import shortage

_T = TypeVar("_T")


class Saved(NamedTuple):
    """A checkpoint that is complete on disk."""

    path: Path
    size_bytes: int
    """Of the files of all ranks."""
    kept_as: Path | None = None
    """New path of a checkpoint of another run that had this name; known only to the main rank."""


def _write_text(path: Path, text: str) -> int:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


@dataclass
class _Share:
    """Fragments and files that one rank writes."""

    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """By kind of file and by key."""
    records: list[FragmentRecord] = field(default_factory=list)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    fixed: dict[str, bool] = field(default_factory=dict)
    """Names of untrained tensors, and whether each is a buffer."""

    @classmethod
    def of(cls, fragments: Iterable[Fragment], rank: int) -> _Share:
        share, averaged = cls(), set()
        for fragment in fragments:
            if fragment.trains:
                averaged.add(fragment.ema is not None)
            else:
                share.fixed[fragment.name] = fragment.is_buffer
            for kind, parts in KINDS.items():
                for part in parts:
                    tensor = getattr(fragment, part)
                    if tensor is not None:
                        key = tensor_key(fragment.name, fragment.start, part)
                        share.tensors.setdefault(kind, {})[key] = tensor
            share.records.append(FragmentRecord(fragment.name, fragment.start, fragment.weight.numel(), rank))
            share.shapes[fragment.name] = list(fragment.shape)
        if len(averaged) > 1:
            raise ValueError("only some fragments have a moving average")
        return share

    @property
    def size(self) -> int:
        """Size of the data in bytes."""
        return sum(4 * tensor.numel() for tensors in self.tensors.values() for tensor in tensors.values())

    def write(self, root: Path, ranks: Ranks) -> list[FileRecord]:
        files = []
        for kind, tensors in self.tensors.items():
            relative = rank_file(kind, ranks.rank, ranks.world_size)
            shapes = {key: ("fp32", tensor.shape) for key, tensor in tensors.items()}
            written = write_safetensors(root / relative, shapes, _blocks(tensors))
            files.append(FileRecord(relative, written.size, written.sha256))
        return files


def _blocks(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """Yield the data of tensors on any device as fp32, with one tensor at a time on the host."""
    for tensor in tensors.values():
        data = tensor.detach().to("cpu", torch.float32).contiguous().view(-1).numpy().view(np.uint8)
        for start in range(0, data.size, BLOCK):
            yield memoryview(data[start : start + BLOCK])


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("swinv2-train", "torch", "deepspeed")}


def _reason(error: Exception, place: Path) -> str:
    if isinstance(error, OSError) and error.filename is None:  # a failed write names no file
        error.filename = str(place)
    if (text := shortage(error)) is not None:
        return text
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def _together(ranks: Ranks, partial: Path, work: Callable[[], _T]) -> list[_T]:
    """Run a part of the save on every rank and return all results. If it fails on any rank, it fails on every rank.

    Every rank must learn of a failure, whatever the error; otherwise it would wait forever in the next collective.
    """
    result, failure, cause = None, None, None
    try:
        result = work()
    except CheckpointError as error:
        failure, cause = str(error), error
    except Exception as error:
        failure, cause = f"rank {ranks.rank}: {_reason(error, partial.parent)}", error
    gathered = ranks.gather((result, failure))
    failures = [reason for _, reason in gathered if reason is not None]
    if failures:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise CheckpointError(failures[0] + others) from cause
    return [value for value, _ in gathered]


def _prepare(
    directory: Path, partial: Path, kinds: Iterable[str], size: int, room: Callable[[int], None] | None
) -> None:
    if room is None:
        directory.mkdir(parents=True, exist_ok=True)
    restore_replaced(directory)
    for left in sorted(directory.glob(f"{PARTIAL_PREFIX}*")):
        shutil.rmtree(left, ignore_errors=True)
    if room is None:
        check_space(directory, size, "delete other files on this disk, or write to another directory")
    else:
        room(size)
    for kind in kinds:
        (partial / kind).mkdir(parents=True)


def _set_aside(final: Path, metadata: dict[str, Any]) -> Path | None:
    """Rename a checkpoint of another run that has the new one's name; return its new path, or None if there is none."""
    if not final.exists() or not is_foreign(final, metadata):
        return None
    number = 1
    while (aside := final.with_name(f"{final.name}.other-{number}")).exists():
        number += 1
    return final.rename(aside)


def _publish(partial: Path, final: Path) -> None:
    """Give a complete directory its final name; an existing one of that name is deleted only after the rename."""
    for folder in (*(path for path in partial.iterdir() if path.is_dir()), partial):
        flush(folder)
    aside = final.with_name(REPLACED_PREFIX + final.name)
    replaces = final.exists()
    if replaces:
        final.rename(aside)
    try:
        partial.rename(final)
    except OSError:
        if replaces:
            aside.rename(final)
        raise
    flush(final.parent)
    if replaces:
        shutil.rmtree(aside, ignore_errors=True)


def save(
    directory: Path,
    step: int,
    *,
    fragments: Iterable[Fragment],
    state: dict[str, Any],
    metadata: dict[str, Any],
    ranks: Ranks,
    metrics: dict[str, float] | None = None,
    room: Callable[[int], None] | None = None,
) -> Saved:
    """Write the checkpoint of a step. A collective: every rank must call it.

    Args:
        directory: directory of the run's checkpoints; shared by all ranks, and created if necessary.
        fragments: those that this rank owns (none if another rank writes the same ones).
        state: JSON data, identical on every rank.
        metadata: JSON data for the manifest.
        metrics: the evaluation at exactly this step, by name; empty without one.
        room: called on the main rank with the bytes that will be written; creates the directory and makes room, or
            raises CheckpointError. By default, only the free space is checked.

    Raises:
        CheckpointError: on every rank, if any rank fails. Older checkpoints are untouched.
    """
    final = directory / step_name(step)
    # Use a new name every time: a rank of an abandoned job may still be writing into its own directory.
    partial = directory / ranks.broadcast(f"{PARTIAL_PREFIX}{final.name}-{secrets.token_hex(4)}")

    def on_main(work: Callable[[], None]) -> None:
        _together(ranks, partial, work if ranks.rank == 0 else lambda: None)

    own = _Share()

    def plan() -> tuple[int, list[str]]:
        nonlocal own
        own = _Share.of(fragments, ranks.rank)
        return own.size, list(own.tensors)

    plans = _together(ranks, partial, plan)
    size = sum(count for count, _ in plans)
    on_main(lambda: _prepare(directory, partial, {kind for _, kinds in plans for kind in kinds}, size, room))
    parts = _together(ranks, partial, lambda: (own.write(partial, ranks), own.records, own.shapes, own.fixed))
    kept_as: Path | None = None

    def complete() -> None:
        nonlocal kept_as
        text = json.dumps(state, indent=1)
        fixed = {name: is_buffer for *_, part in parts for name, is_buffer in part.items()}
        state_file = FileRecord(STATE, _write_text(partial / STATE, text), hashlib.sha256(text.encode()).hexdigest())
        manifest = Manifest(
            step=step,
            world_size=ranks.world_size,
            metadata=metadata,
            shapes={name: shape for _, _, shapes, _ in parts for name, shape in shapes.items()},
            fragments=[record for _, records, *_ in parts for record in records],
            files=[record for files, *_ in parts for record in files] + [state_file],
            metrics=metrics or {},
            versions=_versions(),
            frozen=sorted(name for name, is_buffer in fixed.items() if not is_buffer),
            buffers=sorted(name for name, is_buffer in fixed.items() if is_buffer),
        )
        # In this order: every rank has flushed its files, then the manifest is flushed, then the directory is renamed.
        _write_text(partial / MANIFEST, manifest_text(manifest))
        kept_as = _set_aside(final, metadata)
        _publish(partial, final)

    on_main(complete)
    return Saved(final, sum(record.size for files, *_ in parts for record in files), kept_as)
