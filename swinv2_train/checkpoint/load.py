"""Read a checkpoint: into the fragments of any number of ranks, or as whole weights."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import KINDS, FragmentRecord, Manifest, rank_file, read_manifest, tensor_key

_KIND_OF = {part: kind for kind, parts in KINDS.items() for part in parts}


class _Reader:
    """Reads runs of elements, keeping the files of a checkpoint open; only the elements asked for are read."""

    def __init__(self, path: Path, manifest: Manifest, stack: ExitStack) -> None:
        self._path, self._manifest, self._stack = path, manifest, stack
        self._files: dict[str, Any] = {}

    def read(self, record: FragmentRecord, part: str, start: int, stop: int) -> torch.Tensor:
        """Elements `start` up to `stop` of the parameter, which lie within the record."""
        relative = rank_file(_KIND_OF[part], record.rank, self._manifest.world_size)
        try:
            if relative not in self._files:
                self._files[relative] = self._stack.enter_context(safe_open(self._path / relative, framework="pt"))
            tensor = self._files[relative].get_slice(tensor_key(record.name, record.start, part))
            return tensor[start - record.start : stop - record.start]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._path / relative} cannot be read ({error})") from error


def _pieces(manifest: Manifest) -> dict[str, list[FragmentRecord]]:
    """The records of every parameter, by their first element."""
    pieces: dict[str, list[FragmentRecord]] = defaultdict(list)
    for record in manifest.fragments:
        pieces[record.name].append(record)
    for records in pieces.values():
        records.sort(key=lambda record: record.start)
    return pieces


def overlapping(records: Sequence[FragmentRecord], start: int, stop: int) -> Iterator[tuple[FragmentRecord, int, int]]:
    """The records that hold elements from `start` up to `stop`, each with the first and the end of what it holds.

    A parameter has as many records as ranks had a part of it; only those needed are looked at.

    Args:
        records: those of one parameter, by their first element, without gap or overlap.
    """
    index = max(0, bisect_right(records, start, key=lambda record: record.start) - 1)
    while index < len(records) and (record := records[index]).start < stop:
        low, high = max(start, record.start), min(stop, record.start + record.count)
        if low < high:
            yield record, low, high
        index += 1


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

    Each rank reads what it owns and no more. The files are taken as verified. Where a fragment wants a moving average
    and the checkpoint has none, the average starts from the loaded weight.

    Raises:
        CheckpointError: if an element of a fragment is not in the checkpoint, or a file cannot be read.
    """
    manifest = read_manifest(path)
    pieces = _pieces(manifest)
    with ExitStack() as stack:
        reader = _Reader(path, manifest, stack)
        for fragment in fragments:
            targets = {part: getattr(fragment, part) for part in ("weight", "exp_avg", "exp_avg_sq")}
            if fragment.ema is not None and manifest.has_ema:
                targets["ema"] = fragment.ema
            count, found = fragment.weight.numel(), 0
            for record, start, stop in overlapping(
                pieces.get(fragment.name, ()), fragment.start, fragment.start + count
            ):
                found += stop - start
                for part, target in targets.items():
                    here = target[start - fragment.start : stop - fragment.start]
                    here.copy_(reader.read(record, part, start, stop))
            if found != count:
                raise CheckpointError(
                    f"{path} has {found} of the {count} elements of {fragment.name} from {fragment.start} on"
                )
            if fragment.ema is not None and not manifest.has_ema:
                fragment.ema.copy_(fragment.weight)


def load_weights(path: Path, *, ema: bool = False) -> dict[str, torch.Tensor]:
    """The whole fp32 weights of a checkpoint, by parameter name, on the host.

    Args:
        ema: their moving average instead.

    Raises:
        CheckpointError: if there is no moving average, or a file cannot be read. The files are taken as verified.
    """
    manifest = read_manifest(path)
    if ema and not manifest.has_ema:
        raise CheckpointError(f"{path} has no moving average of the weights")
    pieces = _pieces(manifest)
    weights = {}
    with ExitStack() as stack:
        reader = _Reader(path, manifest, stack)
        for name, shape in manifest.shapes.items():
            flat = torch.empty(torch.Size(shape).numel(), dtype=torch.float32)
            for record in pieces.get(name, ()):
                end = record.start + record.count
                flat[record.start : end] = reader.read(record, "ema" if ema else "weight", record.start, end)
            weights[name] = flat.view(shape)
    return weights
