"""A checkpoint on disk.

    checkpoints/
        step-00012000/
            manifest.json                           size and hash of every file, where each fragment is, metadata
            state.json                              TrainState and the optimizer's scalars
            model/rank-00000-of-00064.safetensors       fp32 weights: the fragments that rank 0 owned
            optimizer/rank-00000-of-00064.safetensors   Adam's two moments of the same fragments
            ema/rank-00000-of-00064.safetensors         the moving average of the weights, where the run keeps one
        .saving-step-00013000-1c9f/                 one being written, or left behind by a crash; never read
        .replaced-step-00012000/                    one that another of the same step replaces, for a moment

A fragment is a run of consecutive elements of one flattened parameter or buffer (see `fragment.py`). The files of the
model have all of them, the others only those of the parameters that train. The tensors are named
`<parameter>@<first element>`, under `exp_avg/` and `exp_avg_sq/` for the moments. A directory is visible under its
final name only when all of it is on disk, and the manifest says what "all" is; it carries its own hash.
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
"""The kinds of files, and which parts of a fragment each holds."""
KIND_OF = {part: kind for kind, parts in KINDS.items() for part in parts}
"""The kind of file that holds a part."""
_STEP_NAME = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """The name of a step's directory."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint directory, or None if it is not one."""
    match = _STEP_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_checkpoints(directory: Path) -> list[Path]:
    """Every checkpoint under its final name, newest first. Valid or not: `verify` decides that."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if step_of(path) is not None), key=step_of, reverse=True)  # type: ignore[arg-type,return-value]


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint, with what must be true of it."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class FragmentRecord:
    """Where `count` elements of a parameter, from element `start` of it flattened, are: in the files of `rank`."""

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
    """What a reader of the weights needs, task, model, and input, and what the order of the samples depends on. Its key
    in the file is `geometry`."""
    shapes: dict[str, list[int]]
    """Shape of every parameter and persistent buffer."""
    fragments: list[FragmentRecord]
    files: list[FileRecord]
    metrics: dict[str, float] = field(default_factory=dict)
    """The evaluation at this very step, by name; empty without one."""
    versions: dict[str, str] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    """Parameters that did not train: they have a weight, but neither moments nor an average."""
    buffers: list[str] = field(default_factory=list)
    """Persistent buffers, of which there is no more either."""
    format_version: int = FORMAT_VERSION

    @property
    def has_ema(self) -> bool:
        """True if it contains the moving average of the weights."""
        return any(record.path.startswith("ema/") for record in self.files)

    @functools.cached_property
    def fixed(self) -> frozenset[str]:
        """Names of all that has only a weight."""
        return frozenset((*self.frozen, *self.buffers))

    def kinds(self) -> list[str]:
        """The kinds of files in it."""
        return [kind for kind in KINDS if kind != "ema" or self.has_ema]

    def holds(self, kind: str, name: str) -> bool:
        """Return whether the files of a kind contain pieces of a tensor."""
        return kind == "model" or name not in self.fixed

    def files_for(self, kind: str | None) -> list[FileRecord]:
        """The files that reading one kind of values takes, or all files.

        Args:
            kind: one of `KINDS`; the average of what does not train is in the files of the weights.
        """
        kinds = {kind, "model"} if kind == "ema" and self.fixed else {kind}
        return [record for record in self.files if kind is None or record.path.partition("/")[0] in kinds]


def rank_file(kind: str, rank: int, world_size: int) -> str:
    """Path of a rank's file inside the checkpoint; `kind` is one of `KINDS`."""
    return f"{kind}/rank-{rank:05d}-of-{world_size:05d}.safetensors"


def tensor_key(name: str, start: int, part: str) -> str:
    """The name of a fragment's tensor inside its file; `part` is one of those in `KINDS`."""
    return f"{part}/{name}@{start}" if part in KINDS["optimizer"] else f"{name}@{start}"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON, with its own hash."""
    values = {"geometry" if key == "metadata" else key: value for key, value in asdict(manifest).items()}
    for key in ("frozen", "buffers"):  # earlier versions, which know nothing of them, read what has none
        if not values[key]:
            del values[key]
    return json.dumps({"sha256": _digest(values), **values}, indent=1)


def read_manifest(path: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: if it is missing, broken, of another format, or of another step than the directory's name.
    """
    manifest = _read_manifest(path)
    if step_of(path) not in (None, manifest.step):
        raise CheckpointError(
            f"it was saved at step {manifest.step} and has been renamed; its name must be {step_name(manifest.step)}"
        )
    return manifest


def is_misnamed(path: Path) -> bool:
    """Return whether a checkpoint's directory has the name of another step than its manifest."""
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
        TypeError: naming what is not so.
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
