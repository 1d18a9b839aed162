"""Weights from any source, under canonical names: a run, a checkpoint, or a file, detected from its content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import KIND_OF, Manifest
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.paths import user_path
from swinv2_train.config.tasks import TASK_SECTIONS, TaskConfig
from swinv2_train.interop import sidecar
from swinv2_train.interop.arrange import Arrangement
from swinv2_train.interop.metadata import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Windows,
    crop_from_name,
    infer_model,
    put_windows,
    recorded_metadata,
    refuse_other_models,
    windows_from_buffers,
    windows_from_name,
)
from swinv2_train.interop.names import FORMATS, HEAD, SIMMIM_ONLY, Located, has_buffers
from swinv2_train.interop.recognize import Recognized, recognize
from swinv2_train.interop.storage import CheckpointStorage, SafetensorsStorage, Storage, numel
from swinv2_train.interop.target import refuse_program
from swinv2_train.interop.torch_file import TorchStorage
from swinv2_train.reading import UnreadableError, is_count, parse_json

if TYPE_CHECKING:
    from torch import Tensor

OWN = "swinv2-train"
_WINDOW_RULES = {
    "official": "official",
    "huggingface": "official",
    "mmpretrain": "official",
    "timm": "per-axis",
    "torchvision": "per-axis",
}
"""The `window_rule` of foreign weights. Hugging Face computes the official one on maps not taller than wide."""
_EXPORT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass
class WeightSource:
    """Weights that can be read tensor by tensor, and what is known about them. Names are canonical (`names.py`)."""

    path: Path
    """Checkpoint or file that was found."""
    format: str
    """A key of `names.FORMATS`."""
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, Any]
    """Sections `task`, `model`, `data`, `preprocess` (crop_pct, crop_mode, interpolation, mean, std, bits), `classes`.

    The model is complete enough to be built, except for `window`, which is absent if it is unknown.
    """
    class_names: list[str] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Keys of the file that are not weights, each with the reason."""
    renamed: dict[str, str] = field(default_factory=dict)
    """For canonical names that the file spells differently: how."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user: skipped checkpoints, unread objects, the origin of the windows."""
    peer_config: Mapping[str, Any] = field(default_factory=dict)
    """The config.json next to weights of timm or Hugging Face; empty if there is none."""
    _storage: Storage | None = None
    _parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _arranged: dict[str, Arrangement] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """Read a complete tensor, fp32 on the CPU.

        Raises:
            CheckpointError: if it cannot be read.
        """
        shape = self.shapes[name]
        return self.elements(name, 0, numel(shape)).reshape(shape)

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        """Read the elements from `start` to `stop` of a flattened tensor, (stop - start,) fp32 on the CPU.

        Raises:
            CheckpointError: if they cannot be read.
        """
        import torch

        assert self._storage is not None
        if arranged := self._arranged.get(name):
            key = self._parts[name][0]
            stored = self._storage.elements(key, 0, numel(self._storage.shapes[key]))
            return arranged.take(stored.reshape(self._storage.shapes[key])).reshape(-1)[start:stop]
        portions, begin = [], 0
        for key in self._parts[name]:
            end = begin + numel(self._storage.shapes[key])
            low, high = max(start, begin), min(stop, end)
            if low < high:
                portions.append(self._storage.elements(key, low - begin, high - begin))
            begin = end
        return portions[0] if len(portions) == 1 else torch.cat(portions) if portions else torch.empty(0)

    def close(self) -> None:
        """Close the files."""
        if self._storage is not None:
            self._storage.close()

    def __enter__(self) -> WeightSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def file_keys(self) -> set[str]:
        """Names of all tensors in the files."""
        return set(self._storage.shapes) if self._storage is not None else set()

    @property
    def head(self) -> tuple[str, ...]:
        """Canonical names that parameters with one row per class have in this task; the first decides their number."""
        return head_names(self.metadata)

    @property
    def num_classes(self) -> int:
        """Rows of the head; 0 without one."""
        task = self.metadata.get("task") or {}
        if task and "num_classes" not in task:  # a head of this name may belong to another task
            return 0
        return self.shapes.get(self.head[0], (0,))[0]


def head_names(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the parameters with one row per class by the task that metadata records."""
    section = TASK_SECTIONS.get(str((metadata.get("task") or {}).get("name")), TaskConfig)
    return section.HEAD or HEAD


def open_source(
    spec: str | Path,
    *,
    which: str = "newest",
    ema: bool = False,
    verify: bool = False,
    skip: Mapping[str, str] | None = None,
) -> WeightSource:
    """Find weights and read their names and shapes; the tensors are read on demand.

    Args:
        spec: a run directory, a directory of checkpoints, a checkpoint, a .safetensors file, a file of `torch.save`
            (.pth, .pt, .bin), or a directory with config.json and weights, as timm and Hugging Face write it.
        which: which of several checkpoints: the `newest` complete one, or the `best` by the best_metric of their run.
        ema: read the moving average instead of the weights.
        verify: compare the hashes of a checkpoint's weights, which reads all of them.
        skip: names of checkpoints that are known to be damaged, each with the reason.

    Raises:
        ConfigError: if there are no Swin Transformer V2 weights, or if the checkpoint or average does not exist.
        CheckpointError: if the content is damaged.
    """
    path = user_path(spec)
    if which not in ("newest", "best"):
        raise ConfigError("", which, f"{which!r} is neither newest nor best")
    if not path.exists():
        raise ConfigError("", path, f"{path} does not exist")
    files, listed = _export_of(path)
    if path.is_dir() and not files:
        if not (path / "checkpoints").is_dir():
            refuse_program(path)
        return _from_checkpoint(*_choose(path, which, verify=verify, ema=ema, skip=skip or {}), ema=ema)
    refuse_program(path)
    if which == "best":
        raise ConfigError("", path, f"{path} is one set of weights, so there is no best one; leave which at newest")
    source = _from_files(path, files or [path], ema=ema)
    missing = sorted(listed - source.file_keys)
    if missing:
        source.close()
        raise CheckpointError(f"{path} lacks {missing[0]}, which its index lists; it is incomplete")
    return source


def _export_of(path: Path) -> tuple[list[Path], set[str]]:
    """Return the weight files of an exported directory, empty if it is not one, and the tensors that its index lists.

    Raises:
        CheckpointError: if the index is broken.
    """
    for name in _EXPORT_FILES if path.is_dir() else ():
        file = path / name
        if file.is_file() and name.endswith(".index.json"):
            listed = sidecar.read_json(file).get("weight_map")
            parts = listed.values() if isinstance(listed, dict) else [None]
            if not parts or not all(isinstance(part, str) and Path(part).name == part for part in parts):
                raise CheckpointError(
                    f"{file} is broken: its weight_map does not list a file next to it for each tensor"
                )
            return [path / part for part in sorted(set(parts))], set(listed)
        if file.is_file():
            return [file], set()
    return [], set()


def _choose(
    path: Path, which: str, *, verify: bool, ema: bool, skip: Mapping[str, str]
) -> tuple[Path, Manifest, list[str]]:
    """Return the selected checkpoint, and a line for each skipped one."""
    from swinv2_train.checkpoint.consolidate import checked
    from swinv2_train.checkpoint.identity import strangers
    from swinv2_train.checkpoint.survey import best_metric_of, checkpoints_of, directory_of, examine, is_checkpoint

    candidates = checkpoints_of(path)
    if not candidates:
        raise ConfigError("", path, f"there is no checkpoint in {directory_of(path)} yet")
    foreign = {} if is_checkpoint(path) else strangers(directory_of(path))
    notes = [f"skipped {name}: {reason}" for name, reason in skip.items()]
    wanted = ""
    if which == "best" and is_checkpoint(path):
        raise ConfigError("", path, f"{path} is one checkpoint, so there is no best one; leave which at newest")
    if which == "best":
        metric, mode = best_metric_of(directory_of(path))
        candidates, unreadable = _best_first(path, candidates, metric, mode)
        notes += [f"skipped {name}: {reason}" for name, reason in unreadable.items() if name not in skip]
        wanted = f" with {metric}"
    for candidate in candidates:
        reason = skip.get(candidate.name)
        if reason is None:
            entry = examine(candidate, foreign=foreign.get(candidate.name))
            reason = entry.damage
            try:
                if not reason:
                    return candidate, checked(candidate, KIND_OF["ema" if ema else "weight"], hashes=verify), notes
            except CheckpointError as error:
                reason = str(error)
            notes.append(f"skipped {candidate.name}: {reason}")
    said = f" ({'; '.join(notes)})" if notes else ""
    raise CheckpointError(
        f"{path} is damaged{said}" if is_checkpoint(path) else f"no checkpoint in {path}{wanted} is valid{said}"
    )


def _best_first(path: Path, candidates: list[Path], metric: str, mode: str) -> tuple[list[Path], dict[str, str]]:
    """Return the checkpoints that have a metric, best first, and the names of unreadable ones, each with the reason."""
    from swinv2_train.checkpoint.survey import examine, ranked

    entries = [examine(candidate) for candidate in candidates]
    manifests = [(entry.path, entry.manifest) for entry in entries if entry.manifest is not None]
    found = ranked(manifests, metric, mode)
    if manifests and not found:
        known = sorted({name for _, manifest in manifests for name in manifest.metrics} - {metric})
        held = f"they have {', '.join(known)}" if known else "they have no metrics at all"
        raise ConfigError("", metric, f"no checkpoint in {path} has the metric {metric} ({held}); use the newest")
    return found, {entry.path.name: str(entry.damage) for entry in entries if entry.manifest is None}


def _from_checkpoint(path: Path, manifest: Manifest, notes: list[str], *, ema: bool) -> WeightSource:
    if ema and not manifest.has_ema:
        raise ConfigError("", path, f"{path} holds no moving average of the weights; use the weights themselves")
    storage = CheckpointStorage(path, manifest, "ema" if ema else "weight")
    return _own(path, storage, manifest.metadata, manifest.metrics, manifest.step, notes)


def _own(
    path: Path,
    storage: Storage,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, float],
    step: int | None,
    notes: list[str],
) -> WeightSource:
    located = FORMATS[OWN].locate(storage.shapes)
    shapes = _joined_shapes(located, storage, path)
    refuse_other_models(shapes, path, patch_dimensions=(4, 5))
    try:
        known = recorded_metadata(metadata)
    except UnreadableError as error:
        storage.close()
        raise CheckpointError(f"{path} does not specify its model: {error}") from error
    named, rows = len(known["classes"] or ()), shapes.get(head_names(known)[0], (0,))[0]
    if named and rows and named != rows:
        notes = [*notes, f"its list of {named} class names is ignored, because its head has {rows} classes"]
        known["classes"] = None
    return WeightSource(
        path=path,
        format=OWN,
        shapes=shapes,
        metadata=known,
        class_names=known["classes"],
        metrics=dict(metrics),
        step=step,
        dropped=located.dropped,
        notes=notes,
        _storage=storage,
        _parts=located.parts,
        _arranged=located.arranged,
    )


def _joined_shapes(located: Located, storage: Storage, path: Path) -> dict[str, tuple[int, ...]]:
    """Return canonical names and shapes; parts are joined along their first dimension.

    Raises:
        CheckpointError: if the parts of one tensor do not fit together.
    """
    shapes = {}
    for name, keys in located.parts.items():
        parts = [storage.shapes[key] for key in keys]
        shapes[name] = parts[0]
        if len(parts) > 1:
            if () in parts or len({part[1:] for part in parts}) > 1:
                listed = ", ".join(f"{key} {part}" for key, part in zip(keys, parts, strict=True))
                raise CheckpointError(f"{path} is broken: the shapes of {listed} do not fit together")
            shapes[name] = (sum(part[0] for part in parts), *parts[0][1:])
    for name, arranged in located.arranged.items():
        try:
            shapes[name] = arranged.shape(shapes[name])
        except ValueError as error:
            key = located.parts[name][0]
            raise CheckpointError(f"{path} is broken: {key} has the shape {shapes[name]} instead of {error}") from error
    return shapes


def _from_files(path: Path, files: list[Path], *, ema: bool) -> WeightSource:
    if files[0].suffix == ".safetensors":
        return _from_safetensors(path, files, ema=ema)
    if len(files) > 1:
        raise ConfigError("", path, f"{path}: weights in several .bin files are not read; convert them to safetensors")
    storage = TorchStorage(files[0], ema=ema)
    return _foreign(path, files[0], storage, storage.training_config)


def _from_safetensors(path: Path, files: list[Path], *, ema: bool) -> WeightSource:
    storage = SafetensorsStorage(files)
    header = storage.metadata
    if ema and header.get("weights") != "ema":
        raise ConfigError("", path, f"{path} contains one set of weights and no moving average")
    if "geometry" not in header:  # every version of this package records it
        return _foreign(path, files[0], storage, None)
    try:
        metadata = parse_json(header.get("geometry", "null"))
        metrics = parse_json(header.get("metrics", "{}"))
        step = parse_json(header.get("step", "null"))
    except UnreadableError as error:
        storage.close()
        raise CheckpointError(f"{path} is damaged: a record in its header is {error}") from error
    metrics = metrics if isinstance(metrics, dict) else {}
    return _own(path, storage, metadata, metrics, step if is_count(step) else None, [])


def _foreign(path: Path, file: Path, storage: Storage, training_config: Any) -> WeightSource:
    """Return weights of another library."""
    recognized = recognize(storage.shapes, path)
    layout = recognized.layout
    if layout is None:
        refuse_other_models({name: storage.shapes[key] for key, name in recognized.names.items()}, path)
        raise ConfigError("", path, f"{path} contains no Swin Transformer V2 that this package knows")
    located = FORMATS[layout].locate(recognized.names, recognized.names)
    shapes = _joined_shapes(located, storage, path)
    model = infer_model(shapes, path)  # first, because it rejects other models
    name = path.stem if path.is_file() else path.name
    crop = {"crop_pct": crop_from_name(name), "crop_mode": "center", "interpolation": "bicubic"}
    metadata: dict[str, Any] = {
        "task": _foreign_task(shapes),
        "model": {**model, "window_rule": _WINDOW_RULES[layout]},
        "data": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        # Other libraries read 8-bit photographs; a processor next to the weights may specify otherwise.
        "preprocess": {**crop, "bits": [8]},
        "classes": None,
    }
    files = sidecar.read(file.parent)
    notes = list(storage.notes)
    if layout == "official" and not has_buffers(recognized.names.values()):
        notes.append(
            f"{path.name} has the names of the official code but not its buffers, so it may be of this package; "
            "model.window_rule=per-axis computes it as this package does by default"
        )
    source = WeightSource(
        path=path,
        format=layout,
        shapes=shapes,
        metadata=metadata,
        dropped=[*located.dropped, *recognized.outside],
        renamed={name: keys[0] for name, keys in located.parts.items() if keys != (name,)},
        notes=notes,
        peer_config=files.config,
        _storage=storage,
        _parts=located.parts,
        _arranged=located.arranged,
    )
    found = _windows(recognized, storage, model, windows_from_name(name)) or sidecar.windows(files, training_config)
    found = found or windows_from_name(name)
    if found is not None:
        put_windows(metadata, found)
        source.notes.append(f"{path.name}: windows {metadata['model']['window']} from {found.origin}")
    source.notes += [f"{path.name}: {note}" for note in sidecar.put_preprocessing(metadata, files)]
    source.class_names = metadata["classes"] = sidecar.class_names(files, source.num_classes)
    return source


def _foreign_task(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if any(name in shapes for name in SIMMIM_ONLY):
        return {"name": "simmim"}
    return {"name": "classification", "num_classes": shapes[HEAD[0]][0] if HEAD[0] in shapes else 0}


def _windows(
    recognized: Recognized, storage: Storage, model: Mapping[str, Any], named: Windows | None
) -> Windows | None:
    """Return the windows from the buffers of a file; None if it has none.

    Args:
        named: the windows that its name tells, for the input size.
    """
    layout = FORMATS[str(recognized.layout)]
    keys = {layout.to_canonical(name): key for key, name in recognized.names.items()}

    def read(name: str) -> list[float]:
        return storage.elements(keys[name], 0, numel(storage.shapes[keys[name]])).tolist()

    shapes = {name: storage.shapes[key] for name, key in keys.items()}
    found = windows_from_buffers(shapes, read, model["depths"], model["patch_size"])
    if found and found.window and not found.resolution:
        found.pretrained = found.pretrained or found.window
        if named and named.window and named.window[0] == found.window[0]:
            found.resolution = named.resolution
    return found
