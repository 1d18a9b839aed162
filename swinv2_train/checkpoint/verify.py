"""Verification of checkpoints, and selection of the one to resume from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from swinv2_train.checkpoint.disk import restore_replaced, sha256
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import (
    STATE,
    FileRecord,
    Manifest,
    list_checkpoints,
    rank_file,
    read_manifest,
    step_of,
)
from swinv2_train.checkpoint.ranks import Ranks


def check_complete(manifest: Manifest) -> None:
    """Check that the fragments cover every tensor exactly once, and that all their files are listed.

    Raises:
        CheckpointError: naming a tensor with a gap or an overlap, or a file that is not listed.
    """
    listed = {record.path for record in manifest.files}
    kinds = manifest.kinds()
    owners = {(record.rank, record.name in manifest.fixed) for record in manifest.fragments}
    pairs = {
        (rank, place) for rank, fixed in owners for place, kind in enumerate(kinds) if kind == "model" or not fixed
    }
    needed = (rank_file(kinds[place], rank, manifest.world_size) for rank, place in sorted(pairs))
    for path in (STATE, *needed):
        if path not in listed:
            raise CheckpointError(f"{path} is not listed")
    pieces: dict[str, list[tuple[int, int]]] = {name: [] for name in manifest.shapes}
    for record in manifest.fragments:
        if record.name not in pieces:
            raise CheckpointError(f"{record.name} has a piece but no shape")
        pieces[record.name].append((record.start, record.count))
    for name, shape in manifest.shapes.items():
        end, total = 0, 1
        for side in shape:
            total *= side
        for start, count in sorted(pieces[name]):
            if start != end:
                raise CheckpointError(f"the pieces of {name} do not join at element {end}")
            end = start + count
        if end != total:
            raise CheckpointError(f"{name} has {end} of its {total} elements")


def check_files(path: Path, manifest: Manifest) -> None:
    """Check size and hash of the files of a checkpoint.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
    """
    for record in manifest.files:
        file = path / record.path
        try:
            size = file.stat().st_size
            if size != record.size:
                raise CheckpointError(f"{record.path} has {size} bytes instead of {record.size}")
            if sha256(file) != record.sha256:
                raise CheckpointError(f"{record.path} has been changed (its hash differs)")
        except OSError as error:
            raise CheckpointError(f"{record.path} cannot be read ({error.strerror})") from error


def verify(path: Path) -> Manifest:
    """Check a checkpoint completely and return its manifest.

    Raises:
        CheckpointError: with the reason, if it is not valid.
    """
    manifest = read_manifest(path)
    check_complete(manifest)
    check_files(path, manifest)
    return manifest


@dataclass(frozen=True)
class Found:
    """Result of the search for a checkpoint to resume from."""

    path: Path | None
    passed_over: list[str]
    """One line for each newer checkpoint that was skipped: its name and the reason."""
    damaged: list[str]
    """Names of the skipped checkpoints, damaged or of another run."""


def _share(files: list[FileRecord], ranks: Ranks) -> list[FileRecord]:
    """Return the files that a rank hashes: assigned round-robin by size, so no rank gets all the large ones."""
    return sorted(files, key=lambda record: record.size)[ranks.rank :: ranks.world_size]


def damage(
    path: Path, ranks: Ranks, kind: str | None = None, foreign: Callable[[Manifest], str | None] | None = None
) -> str | None:
    """Return the damage of a checkpoint; None if it is intact. A collective: the ranks share the hashing.

    Args:
        kind: one of `KINDS`: check only the files needed to read this kind.
        foreign: returns why a checkpoint belongs to another run, or None.
    """
    failure = None
    try:
        manifest = read_manifest(path)
        reason = foreign(manifest) if foreign else None
        if reason:
            raise CheckpointError(reason)
        check_complete(manifest)
        files = manifest.files_for(kind)
        check_files(path, replace(manifest, files=_share(files, ranks)))
    except CheckpointError as error:
        failure = str(error)
    return next((reason for reason in ranks.gather(failure) if reason), None)


def newest_valid(
    directory: Path,
    ranks: Ranks,
    until: int | None = None,
    foreign: Callable[[Manifest], str | None] | None = None,
) -> Found:
    """Return the newest checkpoint that verifies. A collective: the ranks share the hashing.

    If a crash interrupted the replacement of a checkpoint, after it lost its name, it is restored first.

    Args:
        until: ignore checkpoints of later steps; None: no limit.
        foreign: returns why a checkpoint belongs to another run, or None; such a checkpoint is skipped like a damaged
            one.
    """
    if ranks.rank == 0:
        with contextlib.suppress(OSError):  # another user's run may be readable but not writable
            restore_replaced(directory)
    listed = list_checkpoints(directory) if ranks.rank == 0 else []
    names = ranks.broadcast([path.name for path in listed if until is None or (step_of(path) or 0) <= until])
    passed_over: list[str] = []
    for index, name in enumerate(names):
        reason = damage(directory / name, ranks, foreign=foreign)
        if reason is None:
            return Found(directory / name, passed_over, names[:index])
        passed_over.append(f"{name}: {reason}")
    return Found(None, passed_over, names)
