"""Write a checkpoint: all or nothing.

Every rank writes the fragments it owns into a directory with a temporary name and flushes them to the disk; the main
rank adds state and manifest and renames the directory. A crash at any moment leaves the older checkpoints as they were
and at most a directory that nobody reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import (
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

_HASH_BLOCK = 1 << 22


class Ranks(Protocol):
    """What saving and loading need of the other ranks."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]: ...
    def broadcast(self, value: Any) -> Any: ...


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Force a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    flush(path)


def _record(root: Path, relative: str) -> FileRecord:
    path = root / relative
    flush(path)
    return FileRecord(relative, path.stat().st_size, sha256(path))


def _write_fragments(
    root: Path, fragments: Iterable[Fragment], ranks: Ranks
) -> tuple[list[FileRecord], list[FragmentRecord], dict[str, list[int]]]:
    weights, moments, records, shapes = {}, {}, [], {}
    for fragment in fragments:
        weights[tensor_key(fragment.name, fragment.start)] = fragment.weight.cpu().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            moments[tensor_key(fragment.name, fragment.start, moment)] = getattr(fragment, moment).cpu().contiguous()
        records.append(FragmentRecord(fragment.name, fragment.start, fragment.weight.numel(), ranks.rank))
        shapes[fragment.name] = list(fragment.shape)
    files = []
    if records:
        for kind, tensors in (("model", weights), ("optimizer", moments)):
            relative = rank_file(kind, ranks.rank, ranks.world_size)
            save_file(tensors, root / relative)
            files.append(_record(root, relative))
    return files, records, shapes


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("swinv2-train", "torch", "deepspeed")}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _agree(ranks: Ranks, failure: str | None, path: Path) -> None:
    # Every rank must learn that one failed, or the others would wait for it in the next collective.
    failed = [f"rank {rank}: {reason}" for rank, reason in enumerate(ranks.gather(failure)) if reason]
    if failed:
        if ranks.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
        raise CheckpointError("; ".join(failed))


def save(
    directory: Path,
    step: int,
    *,
    fragments: Iterable[Fragment],
    state: dict[str, Any],
    geometry: dict[str, Any],
    ranks: Ranks,
) -> Path:
    """Write the checkpoint of a step and return its directory. Every rank must call it.

    Args:
        directory: where the run's checkpoints are; shared by all ranks.
        fragments: what this rank owns (nothing, where another rank writes the same).
        state: JSON data that is the same on every rank.
        geometry: JSON data for the manifest.

    Raises:
        CheckpointError: on every rank, if any rank could not write. Older checkpoints are untouched.
    """
    final, partial = directory / step_name(step), directory / f"{PARTIAL_PREFIX}{step_name(step)}"
    failure = None
    if ranks.rank == 0:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            for kind in ("model", "optimizer"):
                (partial / kind).mkdir(parents=True)
        except OSError as error:
            failure = _reason(error)
    _agree(ranks, failure, partial)

    written: tuple[list[FileRecord], list[FragmentRecord], dict[str, list[int]]] = ([], [], {})
    try:
        written = _write_fragments(partial, fragments, ranks)
    except (OSError, SafetensorError) as error:
        failure = _reason(error)
    _agree(ranks, failure, partial)

    parts = ranks.gather(written)
    if ranks.rank == 0:
        try:
            _write_text(partial / STATE, json.dumps(state, indent=1))
            manifest = Manifest(
                step=step,
                world_size=ranks.world_size,
                geometry=geometry,
                shapes={name: shape for _, _, shapes in parts for name, shape in shapes.items()},
                fragments=[record for _, records, _ in parts for record in records],
                files=[record for files, _, _ in parts for record in files] + [_record(partial, STATE)],
                versions=_versions(),
            )
            _write_text(partial / MANIFEST, manifest_text(manifest))
            for inner in (partial / "model", partial / "optimizer", partial):
                flush(inner)
            if final.exists():  # the same step again, after a resume from an older checkpoint
                shutil.rmtree(final)
            partial.rename(final)
            flush(directory)
        except OSError as error:
            failure = _reason(error)
    _agree(ranks, failure, partial)
    return final
