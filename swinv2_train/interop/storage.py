"""Files of weights as named tensors that are read when asked for: checkpoints, safetensors, and torch's pickles.

A pickle is a program. None is ever run here: torch reads it with `weights_only`, and where a file holds objects besides
tensors (official training checkpoints hold their config), a second reading puts empty placeholders in their place.
"""

from __future__ import annotations

import math
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import Manifest
from swinv2_train.checkpoint.pieces import Pieces
from swinv2_train.checkpoint.tensor_file import read_exactly, read_header

if TYPE_CHECKING:
    import torch

_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_STATE_KEYS = ("model", "state_dict", "module")
"""Where a training checkpoint keeps its weights: the official code, timm, DeepSpeed."""
_EMA_KEYS = ("model_ema", "state_dict_ema")


class Storage(Protocol):
    """Named tensors in one or several files."""

    shapes: dict[str, tuple[int, ...]]
    notes: list[str]
    """What a person should know of the reading."""

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        """The elements from `start` up to `stop` of a flattened tensor, (stop - start,) fp32 on the CPU.

        Raises:
            CheckpointError: if they cannot be read.
        """

    def close(self) -> None:
        """Let go of the files."""


class CheckpointStorage:
    """The weights of a checkpoint of ours, put together from the pieces of however many ranks; holds no more than what
    is asked for."""

    def __init__(self, path: Path, manifest: Manifest, part: str) -> None:
        self.shapes = {name: tuple(shape) for name, shape in manifest.shapes.items()}
        self.notes: list[str] = []
        self._pieces, self._part = Pieces(path, manifest), part

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        import torch

        out, done = torch.empty(stop - start), 0
        for data in self._pieces.slices(key, self._part, start, stop):
            values = torch.frombuffer(data, dtype=torch.float32)
            out[done : done + values.numel()] = values
            done += values.numel()
        return out

    def close(self) -> None:
        self._pieces.__exit__()


class SafetensorsStorage:
    """One safetensors file, or several that make up a model.

    Read with plain file reads: a slice of a tensor costs no more than itself, and a failing disk is an error instead of
    a crash, as it would be in a memory map.

    Raises:
        CheckpointError: if a file is cut off, or none of the format.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.notes: list[str] = []
        self.metadata: dict[str, str] = {}
        self._files: list[Any] = []
        self._entries: dict[str, tuple[Any, Path, int, str]] = {}
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        try:
            file = path.open("rb", buffering=0)
            self._files.append(file)
            begin, header = read_header(file)
            self.metadata.update(header.pop("__metadata__", None) or {})
            end = begin
            for key, entry in header.items():
                first, last = entry["data_offsets"]
                shape, dtype = tuple(int(side) for side in entry["shape"]), str(entry["dtype"])
                end = max(end, begin + last)
                self.shapes[key] = shape
                self._entries[key] = (file, path, begin + first, dtype)
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is no whole safetensors file ({_first_line(error)})") from error
        if size < end:
            raise CheckpointError(f"{path} is cut off: it has {size} of its {end} bytes")

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        import torch

        file, path, begin, code = self._entries[key]
        if code not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"{path}: {key} is of type {code}, which this program does not read")
        dtype = getattr(torch, _SAFETENSORS_DTYPES[code])
        try:
            file.seek(begin + dtype.itemsize * start)
            data = read_exactly(file, dtype.itemsize * (stop - start))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is cut off inside {key}") from error
        return torch.frombuffer(data, dtype=dtype).float() if data else torch.empty(0)

    def close(self) -> None:
        for file in self._files:
            file.close()


class TorchStorage:
    """A file of `torch.save`: a dictionary of tensors, or a training checkpoint that holds one.

    Args:
        ema: take the moving average that the file keeps beside the weights.

    Raises:
        CheckpointError: if it is cut off, or not such a file.
    """

    def __init__(self, path: Path, *, ema: bool = False) -> None:
        self.notes: list[str] = []
        _refuse_foreign(path)
        content = self._load(path)
        state = _state_dict(path, content, ema=ema)
        self.training_config = content.get("config") if isinstance(content, Mapping) else None
        """The config that the official code puts beside the weights, as far as it is plain data."""
        self._tensors = state
        self.shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        self.path = path

    def _load(self, path: Path) -> Any:
        import torch

        options: dict[str, Any] = {"map_location": "cpu", "mmap": zipfile.is_zipfile(path)}
        try:
            try:
                return torch.load(path, weights_only=True, **options)
            except pickle.UnpicklingError:
                inert = _Inert()
                content = torch.load(path, weights_only=False, pickle_module=inert.as_module(), **options)
                names = ", ".join(sorted(inert.replaced))
                if names:
                    self.notes.append(
                        f"{path.name} holds objects besides tensors, of which nothing was run or kept: {names}"
                    )
                return content
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
        except Exception as error:  # whatever a broken pickle makes of torch and pickle
            raise CheckpointError(f"{path} is broken or no file of weights ({_first_line(error)})") from error

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        return self._tensors[key].reshape(-1)[start:stop].float()

    def close(self) -> None:
        self._tensors = {}


class Placeholder(dict):
    """Stands for an object of a class that is not loaded; keeps the plain data it was given and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Leave the state aside."""

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        return Placeholder()

    def append(self, _: Any) -> None:
        """Leave an element of a list aside."""

    def extend(self, _: Any) -> None:
        """Leave elements of a list aside."""


class _Inert:
    """Unpickles tensors and plain data. Whatever else a pickle names is neither imported nor called."""

    def __init__(self) -> None:
        self.replaced: set[str] = set()

    def as_module(self) -> Any:
        """In the shape that `torch.load` takes as its `pickle_module`."""
        import torch

        # Functions of our own: a pickle may set attributes on what it is handed.
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *values: torch._utils._rebuild_tensor_v2(*values),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch", "Size"): lambda sides: tuple(sides),
        }
        replaced = self.replaced

        class Unpickler(pickle.Unpickler):
            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, _only_storages(value) if name == "persistent_load" else value)

            def find_class(self, module: str, name: str) -> Any:
                if (module, name) in allowed:
                    return allowed[module, name]
                replaced.add(f"{module}.{name}")
                # A class of its own for each: what a pickle does to one does not reach the others.
                return type("Placeholder", (Placeholder,), {})

        def load(file: Any, **options: Any) -> Any:
            return Unpickler(file, **options).load()

        return SimpleNamespace(Unpickler=Unpickler, load=load, __name__="inert")


def _only_storages(load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What torch makes of a persistent id, but for whole modules in files of the old format.

    For these torch compares the source code, and writes the difference into a file whose name the pickle may choose.
    """

    def persistent(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and identifier[:1] in (("module",), (b"module",)):
            return identifier[1] if len(identifier) > 1 else None
        return load(identifier)

    return persistent


def _refuse_foreign(path: Path) -> None:
    """Say what a file is that is certainly no file of torch."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    text = start.lstrip().lower()
    if not start:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(f"{path} is a web page, not a file of weights; download it again from its direct link")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    if start.startswith(b"PK"):
        _check_archive(path)
    elif all(byte in b"\t\n\r\f" or byte >= 32 for byte in start):
        raise CheckpointError(f"{path} is a text file, not a file of weights")
    elif tarfile.is_tarfile(path):  # torch would unpack one of its own first format
        raise CheckpointError(f"{path} is a tar archive, not a file of weights")


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path} is cut off or damaged; copy or download it again") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript program, not a file of weights")
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path} is a zip archive without weights in it")


def _state_dict(path: Path, content: Any, *, ema: bool) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    keys = _EMA_KEYS if ema else _STATE_KEYS
    inner = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), None)
    if inner is None and ema:
        raise CheckpointError(f"{path} holds no moving average ({' or '.join(_EMA_KEYS)})")
    state = content if inner is None else inner
    tensors = {key: value.detach() for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        held = ", ".join(str(key) for key in list(state)[:6]) or "nothing"
        raise CheckpointError(f"{path} holds no named tensors (it has {held})")
    return tensors


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def numel(shape: tuple[int, ...]) -> int:
    """Elements of a tensor of this shape."""
    return math.prod(shape)
