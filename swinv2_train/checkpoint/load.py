"""Read a checkpoint: into the fragments of any number of ranks, or as whole weights."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import STATE, FragmentRecord, Manifest, rank_file, read_manifest, tensor_key


def load_state(path: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    try:
        return json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {error}") from error


class _Reader:
    """Reads slices of fragments, keeping the files of a checkpoint open; only the bytes asked for are read."""

    def __init__(self, path: Path, manifest: Manifest, stack: ExitStack) -> None:
        self._path, self._manifest, self._stack = path, manifest, stack
        self._files: dict[str, Any] = {}

    def read(self, record: FragmentRecord, moment: str | None, start: int, count: int) -> torch.Tensor:
        relative = rank_file("optimizer" if moment else "model", record.rank, self._manifest.world_size)
        if relative not in self._files:
            self._files[relative] = self._stack.enter_context(safe_open(self._path / relative, framework="pt"))
        tensor = self._files[relative].get_slice(tensor_key(record.name, record.start, moment))
        return tensor[start - record.start : start - record.start + count]


def _pieces(manifest: Manifest) -> dict[str, list[FragmentRecord]]:
    pieces: dict[str, list[FragmentRecord]] = defaultdict(list)
    for record in manifest.fragments:
        pieces[record.name].append(record)
    return pieces


def check_parameters(manifest: Manifest, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that a checkpoint holds exactly the parameters of a model.

    Raises:
        CheckpointError: naming what differs.
    """
    missing = sorted(shapes.keys() - manifest.shapes.keys())
    unknown = sorted(manifest.shapes.keys() - shapes.keys())
    other = [name for name in shapes if name in manifest.shapes and list(shapes[name]) != manifest.shapes[name]]
    for names, what in ((missing, "lacks"), (unknown, "has the unknown"), (other, "has another shape for")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"the checkpoint {what} parameter {names[0]}{more}")


@torch.no_grad()
def load_fragments(path: Path, fragments: Iterable[Fragment]) -> None:
    """Fill fragments of the present ranks from a checkpoint of any number of ranks.

    Each rank reads what it owns and no more. The files are taken as verified.
    """
    manifest = read_manifest(path)
    pieces = _pieces(manifest)
    with ExitStack() as stack:
        reader = _Reader(path, manifest, stack)
        for fragment in fragments:
            end = fragment.start + fragment.weight.numel()
            for record in pieces[fragment.name]:
                start, stop = max(fragment.start, record.start), min(end, record.start + record.count)
                if start >= stop:
                    continue
                here = slice(start - fragment.start, stop - fragment.start)
                for moment in (None, "exp_avg", "exp_avg_sq"):
                    target = fragment.weight if moment is None else getattr(fragment, moment)
                    target[here].copy_(reader.read(record, moment, start, stop - start))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The whole fp32 weights of a checkpoint, by parameter name, on the host."""
    manifest = read_manifest(path)
    pieces = _pieces(manifest)
    weights = {}
    with ExitStack() as stack:
        reader = _Reader(path, manifest, stack)
        for name, shape in manifest.shapes.items():
            flat = torch.empty(torch.Size(shape).numel(), dtype=torch.float32)
            for record in pieces[name]:
                flat[record.start : record.start + record.count] = reader.read(record, None, record.start, record.count)
            weights[name] = flat.view(shape)
    return weights
