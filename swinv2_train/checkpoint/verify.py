"""Is a checkpoint whole? And which of several is the one to resume from?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import Manifest, list_checkpoints, read_manifest
from swinv2_train.checkpoint.save import Ranks, sha256


def check_complete(manifest: Manifest) -> None:
    """Check that the fragments cover every parameter exactly once.

    Raises:
        CheckpointError: naming a parameter with a gap or an overlap.
    """
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


def check_files(path: Path, manifest: Manifest, share: slice = slice(None)) -> None:
    """Check size and hash of the files of a checkpoint.

    Args:
        share: which of the files to check; the ranks of a job divide them among themselves.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
    """
    for record in manifest.files[share]:
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
    """Check a whole checkpoint and return its manifest.

    Raises:
        CheckpointError: with the reason, if it is not valid.
    """
    manifest = read_manifest(path)
    check_complete(manifest)
    check_files(path, manifest)
    return manifest


@dataclass(frozen=True)
class Found:
    """The outcome of looking for a checkpoint to resume from."""

    path: Path | None
    passed_over: list[str]
    """One line for each newer checkpoint that is not valid: its name and the reason."""


def newest_valid(directory: Path, ranks: Ranks) -> Found:
    """The newest checkpoint that verifies. Every rank must call it; the ranks share the work of hashing."""
    names = ranks.broadcast([path.name for path in list_checkpoints(directory)])
    passed_over = []
    for name in names:
        path, failure = directory / name, None
        try:
            manifest = read_manifest(path)
            check_complete(manifest)
            check_files(path, manifest, slice(ranks.rank, None, ranks.world_size))
        except CheckpointError as error:
            failure = str(error)
        failures = [reason for reason in ranks.gather(failure) if reason]
        if not failures:
            return Found(path, passed_over)
        passed_over.append(f"{name}: {failures[0]}")
    return Found(None, passed_over)
