"""Files of `torch.save`.

A pickle is a program, and none is ever executed here: torch reads it with `weights_only`. If a file contains objects
other than tensors (official training checkpoints contain their config), a second pass replaces them with empty
placeholders. Before either, `torch_check.py` compares the pickle's claims with the size of the data.
"""

from __future__ import annotations

import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.image_files import is_array
from swinv2_train.data.image_header import sniff
from swinv2_train.data.samples import VIDEO_EXTENSIONS
from swinv2_train.interop.storage import first_line
from swinv2_train.interop.torch_check import Placeholder, check_file

if TYPE_CHECKING:
    import torch

_STATE_KEYS = ("model", "state_dict", "module")
"""Keys of the weights in training checkpoints of the official code, timm, and DeepSpeed."""
_EMA_KEYS = ("model_ema", "state_dict_ema")


_PICKLES = (b"\x80", b"L")
"""Starts of the old format: the opcode of the protocol, or before protocol 2 that of its magic number."""


class TorchStorage:
    """A file of `torch.save`: a dictionary of tensors, or a training checkpoint that contains one.

    Args:
        ema: read the moving average that the file stores next to the weights.

    Raises:
        ConfigError: if it is a file of another kind.
        CheckpointError: if it is truncated, or contradicts itself.
    """

    def __init__(self, path: Path, *, ema: bool = False) -> None:
        self.notes: list[str] = []
        _refuse_foreign(path)
        content = self._load(path)
        state = _state_dict(path, content, ema=ema)
        self.training_config = content.get("config") if isinstance(content, Mapping) else None
        """Config that the official code stores next to the weights, as far as it is plain data."""
        self._tensors = state
        self.shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        self.path = path

    def _load(self, path: Path) -> Any:
        import torch

        # A mapped member is used exactly as stored in the file, so a compressed one would be read as noise.
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
                        f"{path.name} contains objects other than tensors, neither executed nor kept: {names}"
                    )
                return content
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
        except Exception as error:  # a broken pickle can make torch and pickle raise anything
            raise CheckpointError(f"{path} is broken or not a file of weights: {first_line(error)}") from error

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        return self._tensors[key].reshape(-1)[start:stop].float()

    def close(self) -> None:
        self._tensors = {}


class _Inert:
    """Unpickles tensors and plain data. Anything else that a pickle names is neither imported nor called."""

    def __init__(self) -> None:
        self.replaced: set[str] = set()

    def as_module(self) -> Any:
        """Return it in the form that `torch.load` accepts as `pickle_module`."""
        import torch

        # Separate functions: a pickle may set attributes on the objects that it gets.
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
                # A separate class for each name: a pickle that modifies one does not affect the others.
                return type(name, (Placeholder,), {})

        def load(file: Any, **options: Any) -> Any:
            return Unpickler(file, **options).load()

        return SimpleNamespace(Unpickler=Unpickler, load=load, __name__="inert")


def _only_storages(load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap torch's loader of persistent ids, but exclude modules in files of the old format.

    For those, torch compares the source code and writes the difference to a file whose name the pickle may choose.
    """

    def persistent(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and identifier[:1] in (("module",), (b"module",)):
            return identifier[1] if len(identifier) > 1 else None
        return load(identifier)

    return persistent


def _refuse_foreign(path: Path) -> None:
    """Report the kind of a file that is certainly not a file of torch. Raises ConfigError, CheckpointError."""
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
        raise _foreign(path, "is a text file, not a file of weights")
    if tarfile.is_tarfile(path):  # torch would unpack it as its own oldest format
        raise _foreign(path, "is a tar archive, not a file of weights")
    if not start.startswith(_PICKLES):
        image = sniff(start)
        if image is not None:
            kind = "an array" if is_array(image) else "an image"
            raise _foreign(path, f"is {kind} ({image}), not a file of weights")
        suffix = path.suffix[1:].lower()
        if suffix in VIDEO_EXTENSIONS:
            raise _foreign(path, f"is a video ({suffix}), not a file of weights")
        raise _foreign(path, "is not a file of weights: use one of safetensors, or one of torch.save")


def _foreign(path: Path, text: str) -> ConfigError:
    return ConfigError("", path, f"{path} {text}")


def _state_dict(path: Path, content: Any, *, ema: bool) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    keys = _EMA_KEYS if ema else _STATE_KEYS
    inner = [content[key] for key in keys if isinstance(content.get(key), Mapping)]
    if not inner and ema:
        raise CheckpointError(f"{path} holds no moving average ({' or '.join(_EMA_KEYS)})")
    states = inner or [content]
    state = next(
        (each for each in states if any(isinstance(value, torch.Tensor) for value in each.values())), states[0]
    )
    tensors = {key: value.detach() for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        _refuse_without_tensors(path, state, [content, *inner])
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path} names a tensor {key!r}, which is not a string; it is not a file of weights")
        if kind := _unreadable_kind(tensor):
            raise CheckpointError(f"{path} holds {key} as a {kind} tensor, which this package does not read")
    return tensors


def _refuse_without_tensors(path: Path, state: Mapping[Any, Any], places: list[Any]) -> NoReturn:
    whole = next((each for each in places if isinstance(each, Placeholder) and each.is_module), None)
    if whole is not None:
        hint = "save its tensors where that code is: torch.save(model.state_dict(), 'weights.pth')"
        raise CheckpointError(f"{path} holds a pickled {type(whole).__name__}, whose code is never loaded; {hint}")
    held = ", ".join(str(key) for key in list(state)[:6]) or "nothing"
    raise CheckpointError(f"{path} holds no named tensors (it has {held})")


def _unreadable_kind(tensor: torch.Tensor) -> str | None:
    """Return the kind of a tensor whose elements cannot be read directly; None for a regular one."""
    import torch

    kinds = {
        "sparse": tensor.layout is not torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "meta (empty)": tensor.is_meta,
    }
    return next((kind for kind, found in kinds.items() if found), None)
