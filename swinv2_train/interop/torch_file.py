"""Files of `torch.save`.

A pickle is a program. None is ever run here: torch reads it with `weights_only`, and where a file holds objects besides
tensors (official training checkpoints hold their config), a second reading puts empty placeholders in their place.
Before either, `torch_check.py` compares what the pickle claims with the size of the data.
"""

from __future__ import annotations

import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.interop.storage import first_line
from swinv2_train.interop.torch_check import Placeholder, check_file

if TYPE_CHECKING:
    import torch

_STATE_KEYS = ("model", "state_dict", "module")
"""Where a training checkpoint keeps its weights: the official code, timm, DeepSpeed."""
_EMA_KEYS = ("model_ema", "state_dict_ema")


class TorchStorage:
    """A file of `torch.save`: a dictionary of tensors, or a training checkpoint that holds one.

    Args:
        ema: take the moving average that the file keeps beside the weights.

    Raises:
        CheckpointError: if it is cut off, contradicts itself, or is not such a file.
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

        # A mapped member is taken as it lies in the file, so that a compressed one would come out as noise.
        options: dict[str, Any] = {"map_location": "cpu", "mmap": check_file(path)}
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
            raise CheckpointError(f"{path} is broken or not a file of weights: {first_line(error)}") from error

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        return self._tensors[key].reshape(-1)[start:stop].float()

    def close(self) -> None:
        self._tensors = {}


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
        return
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in start):
        raise CheckpointError(f"{path} is a text file, not a file of weights")
    if tarfile.is_tarfile(path):  # torch would unpack one of its own first format
        raise CheckpointError(f"{path} is a tar archive, not a file of weights")


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
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path} names a tensor {key!r}, which is not a text; it is not a file of weights")
        if kind := _unreadable_kind(tensor):
            raise CheckpointError(f"{path} holds {key} as a {kind} tensor, which this program does not read")
    return tensors


def _unreadable_kind(tensor: torch.Tensor) -> str | None:
    """The kind of a tensor whose elements cannot be taken as they are; None for the usual one."""
    import torch

    kinds = {
        "sparse": tensor.layout is not torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "meta (empty)": tensor.is_meta,
    }
    return next((kind for kind, found in kinds.items() if found), None)
