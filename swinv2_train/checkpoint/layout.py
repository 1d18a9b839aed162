"""Layout of a checkpoint on disk.

    checkpoints/
        step-00012000/
            manifest.json                           size and hash of every file, where each fragment is, metadata
            state.json                              TrainState and the optimizer's scalars
            model/rank-00000-of-00064.safetensors       fp32 weights: the fragments that rank 0 owned
            optimizer/rank-00000-of-00064.safetensors   Adam's two moments of the same fragments
            ema/rank-00000-of-00064.safetensors         the moving average of the weights, if the run keeps one
        .saving-step-00013000-1c9f/                 being written, or left behind by a crash; never read
        .replaced-step-00012000/                    being replaced by another one of the same step

A fragment is a range of consecutive elements of one flattened parameter or buffer (see `fragment.py`). The model files
contain all of them, the others only those of trained parameters. The tensors are named `<parameter>@<first element>`,
with the prefix `exp_avg/` or `exp_avg_sq/` for the moments. A directory gets its final name only once all of its
content is on disk. The manifest defines this content and contains its own hash.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.reading import UnreadableError, is_count, read_object

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
STATE = "state.json"
PARTIAL_PREFIX = ".saving-"
KINDS = {"model": ("weight",), "optimizer": ("exp_avg", "exp_avg_sq"), "ema": ("ema",)}
"""Kinds of files, and the parts of a fragment that each contains."""
KIND_OF = {part: kind for kind, parts in KINDS.items() for part in parts}
"""Kind of file that contains a part."""
_STEP_NAME = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """Return the name of a step's directory."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step of a checkpoint directory, or None if it is not one."""
    match = _STEP_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_checkpoints(directory: Path) -> list[Path]:
    """Return every checkpoint with a final name, newest first. They may be damaged; `verify` checks that."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if step_of(path) is not None), key=step_of, reverse=True)  # type: ignore[arg-type,return-value]


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint, with its expected size and hash."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class FragmentRecord:
    """Location of `count` elements of a flattened parameter, from element `start`: the files of `rank`."""

    name: str
    start: int
    count: int
    rank: int


@dataclass
class Manifest:
    """Contents of a checkpoint."""

    step: int
    world_size: int
    metadata: dict[str, Any]
    """Data for readers of the weights (task, model, and input), and everything that the order of samples depends on.
    Its key in the file is `geometry`."""
    shapes: dict[str, list[int]]
    """Shape of every parameter and persistent buffer."""
    fragments: list[FragmentRecord]
    files: list[FileRecord]
    metrics: dict[str, float] = field(default_factory=dict)
    """The evaluation at exactly this step, by name; empty without one."""
    versions: dict[str, str] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    """Parameters that were not trained: they have a weight, but neither moments nor an average."""
    buffers: list[str] = field(default_factory=list)
    """Persistent buffers, which also have only a value."""
    format_version: int = FORMAT_VERSION

    @property
    def has_ema(self) -> bool:
        """True if it contains the moving average of the weights."""
        return any(record.path.startswith("ema/") for record in self.files)

    @functools.cached_property
    def fixed(self) -> frozenset[str]:
        """Names of all tensors that have only a weight."""
        return frozenset((*self.frozen, *self.buffers))

    def kinds(self) -> list[str]:
        """Kinds of files in the checkpoint."""
        return [kind for kind in KINDS if kind != "ema" or self.has_ema]

    def holds(self, kind: str, name: str) -> bool:
        """Return whether the files of a kind contain pieces of a tensor."""
        return kind == "model" or name not in self.fixed

    def files_for(self, kind: str | None) -> list[FileRecord]:
        """Return the files needed to read one kind of values, or all files.

        Args:
            kind: one of `KINDS`; the average of untrained tensors is in the weight files.
        """
        kinds = {kind, "model"} if kind == "ema" and self.fixed else {kind}
        return [record for record in self.files if kind is None or record.path.partition("/")[0] in kinds]


def rank_file(kind: str, rank: int, world_size: int) -> str:
    """Return the path of a rank's file inside the checkpoint; `kind` is one of `KINDS`."""
    return f"{kind}/rank-{rank:05d}-of-{world_size:05d}.safetensors"


def tensor_key(name: str, start: int, part: str) -> str:
    """Return the name of a fragment's tensor inside its file; `part` is one of those in `KINDS`."""
    return f"{part}/{name}@{start}" if part in KINDS["optimizer"] else f"{name}@{start}"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest as JSON, with its own hash."""
    values = {"geometry" if key == "metadata" else key: value for key, value in asdict(manifest).items()}
    for key in ("frozen", "buffers"):  # earlier versions, which reject unknown keys, can read checkpoints without them
        if not values[key]:
            del values[key]
    return json.dumps({"sha256": _digest(values), **values}, indent=1)


def read_manifest(path: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: if it is missing, broken, of another format, or does not match the step in the directory's
            name.
    """
    manifest = _read_manifest(path)
    if step_of(path) not in (None, manifest.step):
        raise CheckpointError(
            f"it was saved at step {manifest.step} and has been renamed; its name must be {step_name(manifest.step)}"
        )
    return manifest


def is_misnamed(path: Path) -> bool:
    """Return whether a checkpoint's directory is named after another step than that of its manifest."""
    try:
        return step_of(path) not in (None, _read_manifest(path).step)
    except CheckpointError:
        return False


def _read_manifest(path: Path) -> Manifest:
    try:
        values = read_object(path / MANIFEST)
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST} is missing ({error.strerror})") from error
    except UnreadableError as error:
        raise CheckpointError(f"{MANIFEST} is broken ({error})") from error
    try:
        digest = values.pop("sha256", None)
        if values["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"format {values['format_version']} is not the one this version reads ({FORMAT_VERSION})"
            )
        if digest != _digest(values):
            raise CheckpointError(f"{MANIFEST} has been changed (its hash differs)")
        values["fragments"] = [FragmentRecord(**record) for record in values["fragments"]]
        values["files"] = [FileRecord(**record) for record in values["files"]]
        manifest = Manifest(metadata=values.pop("geometry"), **values)
        if not isinstance(manifest.metadata, dict) or not isinstance(manifest.metrics, dict):
            raise TypeError("geometry or metrics")
        _check_numbers(manifest)
        return manifest
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} is broken (missing or unknown entry {error})") from error


def _check_numbers(manifest: Manifest) -> None:
    """Check that every number of a manifest is a count, and that its files are inside the checkpoint.

    Raises:
        TypeError: naming the invalid entry.
    """
    if not is_count(manifest.step) or not is_count(manifest.world_size):
        raise TypeError("step or world_size")
    for name, shape in manifest.shapes.items():
        if not all(map(is_count, shape)):
            raise TypeError(f"shape of {name}")
    for names in (manifest.frozen, manifest.buffers):
        if not isinstance(names, list) or not all(isinstance(name, str) and name in manifest.shapes for name in names):
            raise TypeError("frozen or buffers")
    for piece in manifest.fragments:
        whole = isinstance(piece.name, str) and is_count(piece.start) and is_count(piece.count) and is_count(piece.rank)
        if not whole or piece.rank >= manifest.world_size:
            raise TypeError(f"fragment of {piece.name}")
    for file in manifest.files:
        inside = isinstance(file.path, str) and not file.path.startswith("/") and ".." not in file.path.split("/")
        if not inside or not is_count(file.size):
            raise TypeError(f"file {file.path}")
