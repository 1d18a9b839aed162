"""Rewriting of a checkpoint as if another number of ranks had saved it.

Loading never needs this, because any number of ranks reads any checkpoint. It is for storage: a few large files are
easier to copy and keep than thousands of small ones. No value is computed: every element's bytes are copied unchanged.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from swinv2_train.checkpoint.consolidate import Progress, checked, counted
from swinv2_train.checkpoint.disk import check_space, flush
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import (
    KINDS,
    MANIFEST,
    PARTIAL_PREFIX,
    FileRecord,
    FragmentRecord,
    Manifest,
    manifest_text,
    rank_file,
    step_name,
    tensor_key,
)
from swinv2_train.checkpoint.pieces import Pieces
from swinv2_train.checkpoint.tensor_file import write_safetensors
from swinv2_train.config.errors import ConfigError
from swinv2_train.shortage import remedied

MOST_RANKS = 4096
"""Upper limit; more files than this help nothing."""


def even_cut(shapes: dict[str, list[int]], num_ranks: int) -> list[list[FragmentRecord]]:
    """Return the parts of each rank if all tensors are laid end to end and cut into equal parts; the last may be
    smaller, or empty."""
    share = -(-sum(math.prod(shape) for shape in shapes.values()) // num_ranks)
    owned: list[list[FragmentRecord]] = [[] for _ in range(num_ranks)]
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape)
        start = offset
        while start < end:
            rank = start // share
            stop = min(end, (rank + 1) * share)
            owned[rank].append(FragmentRecord(name, start - offset, stop - start, rank))
            start = stop
        offset = end
    return owned


def reshape(path: Path, out: Path, num_ranks: int, progress: Progress | None = None) -> Path:
    """Rewrite a checkpoint as `num_ranks` files of each kind, verify it, and return its directory.

    Args:
        path: the checkpoint; it is verified first.
        out: gets the directory `step-NNNNNNNN`, which appears once it is complete on disk and verified.
        num_ranks: at least 1.

    Raises:
        ConfigError: if the target exists, or there are too many ranks.
        CheckpointError: if the checkpoint is damaged or the new one cannot be written; nothing is left behind in that
            case.
    """
    manifest = checked(path, hashes=False)
    if num_ranks > max(manifest.world_size, MOST_RANKS):
        raise ConfigError(
            "", num_ranks, f"{num_ranks} ranks are more than {MOST_RANKS}; this command is for fewer, larger files"
        )
    final = out / step_name(manifest.step)
    partial = out / f"{PARTIAL_PREFIX}{final.name}"
    for target in (final, partial):
        if target.exists():
            raise ConfigError("", target, f"{target} already exists; remove it or use another directory")
    if out.resolve().is_relative_to(path.resolve()):
        raise ConfigError("", out, f"{out} is inside the checkpoint; use another directory")
    checked(path)
    existed = out.exists()
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{partial} cannot be created ({remedied(error)})") from error
    try:
        check_space(
            out,
            sum(record.size for record in manifest.files),
            "delete other files on this disk, or write to another directory",
        )
        _write(path, partial, manifest, num_ranks, progress)
        checked(partial)
        partial.rename(final)
        flush(out)
    except OSError as error:
        raise CheckpointError(f"{final} cannot be written ({remedied(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()
    return final


def _write(path: Path, partial: Path, manifest: Manifest, num_ranks: int, progress: Progress | None) -> None:
    owned = even_cut(manifest.shapes, num_ranks)
    kinds = manifest.kinds()
    for kind in kinds:
        (partial / kind).mkdir()
    files = _write_ranks(path, partial, manifest, owned, kinds, progress)
    for record in manifest.files:
        if record.path.partition("/")[0] not in KINDS:
            _copy(path / record.path, partial / record.path)
            files.append(record)
    fragments = [record for records in owned for record in records]
    _write_bytes(
        partial / MANIFEST,
        manifest_text(replace(manifest, world_size=num_ranks, fragments=fragments, files=files)).encode(),
    )
    for directory in (*(partial / kind for kind in kinds), partial):
        flush(directory)


def _write_ranks(
    path: Path,
    partial: Path,
    manifest: Manifest,
    owned: Sequence[Sequence[FragmentRecord]],
    kinds: Sequence[str],
    progress: Progress | None,
) -> list[FileRecord]:
    total, done, files = sum(record.size for record in manifest.files), 0, []
    with Pieces(path, manifest) as pieces:
        for rank, records in enumerate(owned):
            for kind in kinds:
                held = [record for record in records if manifest.holds(kind, record.name)]
                if not held:
                    continue
                relative = rank_file(kind, rank, len(owned))
                data = counted(_elements(pieces, held, KINDS[kind]), progress, total, done)
                tensors = {
                    tensor_key(record.name, record.start, part): ("fp32", (record.count,))
                    for part in KINDS[kind]
                    for record in held
                }
                written = write_safetensors(partial / relative, tensors, data)
                files.append(FileRecord(relative, written.size, written.sha256))
                done += written.size
    return files


def _elements(pieces: Pieces, records: Sequence[FragmentRecord], parts: Sequence[str]) -> Iterator[bytearray]:
    for part in parts:
        for record in records:
            yield from pieces.slices(record.name, part, record.start, record.start + record.count)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_bytes(target, source.read_bytes())


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
