"""All weights of a checkpoint in one safetensors file, with little memory.

The elements of a parameter are spread over the files of many ranks; they are read and written in slices of bounded
size.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint import disk
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import KIND_OF, Manifest, read_manifest
from swinv2_train.checkpoint.pieces import Pieces
from swinv2_train.checkpoint.tensor_file import DTYPES, Written, write_safetensors
from swinv2_train.checkpoint.verify import check_complete, check_files
from swinv2_train.config.errors import ConfigError
from swinv2_train.shortage import remedied

Progress = Callable[[int, int], None]
"""Called with the bytes written and the total bytes."""


def checked(path: Path, kind: str | None = None, *, hashes: bool = True) -> Manifest:
    """Check a checkpoint and return its manifest.

    Args:
        kind: one of `KINDS`: check the hashes of the files needed to read this kind, and no others.
        hashes: False: check no hashes, only that the pieces cover every parameter.

    Raises:
        CheckpointError: naming the checkpoint and the damage.
    """
    try:
        manifest = read_manifest(path)
        check_complete(manifest)
        if hashes:
            check_files(path, replace(manifest, files=manifest.files_for(kind)))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return manifest


def counted(data: Iterable[Any], progress: Progress | None, total: int, done: int = 0) -> Iterator[Any]:
    """Yield portions of bytes unchanged and report the running total, which starts at `done`."""
    for portion in data:
        yield portion
        done += len(portion)
        if progress is not None:
            progress(done, total)


def write_weights(
    path: Path,
    out: Path,
    *,
    ema: bool = False,
    dtype: str = "fp32",
    verify: bool = True,
    progress: Progress | None = None,
) -> Written:
    """Write the complete weights of a checkpoint, under their parameter names, into one safetensors file.

    Args:
        path: the checkpoint.
        out: the new file; it appears once it is complete on disk.
        ema: write the moving average instead of the weights.
        dtype: a key of `DTYPES`; values are rounded to nearest.
        verify: check the hashes of the needed files first.

    Raises:
        ConfigError: if `out` exists or is not a valid target, or if the checkpoint has no average.
        CheckpointError: if the checkpoint is damaged, a weight is too large for `dtype`, or the disk is full.
    """
    part = "ema" if ema else "weight"
    _check_target(out)
    manifest = checked(path, KIND_OF[part], hashes=verify)
    if ema and not manifest.has_ema:
        raise ConfigError("", path, f"{path} holds no moving average; omit --ema to use the weights themselves")
    total = DTYPES[dtype][1] * sum(math.prod(shape) for shape in manifest.shapes.values())
    disk.check_space(out.parent, total, "delete other files on this disk, or write to another directory")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with Pieces(path, manifest) as pieces:
            written = write_safetensors(
                partial,
                {name: (dtype, manifest.shapes[name]) for name in sorted(manifest.shapes)},
                counted(_weights(pieces, manifest, part, dtype), progress, total),
                {
                    "format": "pt",
                    "step": str(manifest.step),
                    "weights": "ema" if ema else "raw",
                    "geometry": json.dumps(manifest.metadata),
                    "versions": json.dumps(manifest.versions),
                },
            )
        _check_target(out)
        partial.rename(out)
        disk.flush(out.parent)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({remedied(error)})") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


def _check_target(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError("", out, f"{out}: the file's name must end in .safetensors")
    if out.exists():
        raise ConfigError("", out, f"{out} already exists; remove it or use another name")
    if not out.parent.is_dir():
        raise ConfigError("", out, f"{out.parent} is not a directory")


def _weights(pieces: Pieces, manifest: Manifest, part: str, dtype: str) -> Iterator[bytearray | memoryview]:
    for name in sorted(manifest.shapes):
        for data in pieces.slices(name, part, 0, math.prod(manifest.shapes[name])):
            yield data if dtype == "fp32" else _rounded(data, dtype, name)


def _rounded(data: bytearray, dtype: str, name: str) -> memoryview:
    import torch

    values = torch.frombuffer(data, dtype=torch.float32)
    low = values.to({"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
    if torch.any(torch.isinf(low) & torch.isfinite(values)):
        raise CheckpointError(f"{name} has values beyond the range of {dtype}; use another dtype")
    return memoryview(low.view(torch.uint8).numpy())
