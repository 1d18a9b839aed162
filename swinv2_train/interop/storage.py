"""Files of weights as named tensors that are read on demand: checkpoints and safetensors (torch's pickles:
`torch_file.py`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import Manifest
from swinv2_train.checkpoint.pieces import Pieces
from swinv2_train.checkpoint.tensor_file import Entry, read_exactly, read_header

if TYPE_CHECKING:
    import torch

_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class Storage(Protocol):
    """Named tensors in one or several files."""

    shapes: dict[str, tuple[int, ...]]
    notes: list[str]
    """Lines for the user about the reading."""

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read the elements from `start` to `stop` of a flattened tensor, (stop - start,) fp32 on the CPU.

        Raises:
            CheckpointError: if they cannot be read.
        """

    def close(self) -> None:
        """Close the files."""


class CheckpointStorage:
    """Weights of a checkpoint of this package, assembled from the pieces of any number of ranks; memory holds no more
    than what is requested."""

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
    """One safetensors file, or several that form a model.

    Uses plain file reads: a slice of a tensor costs no more memory than itself, and a failing disk raises an error
    instead of crashing the process, as it would with a memory map.

    Raises:
        CheckpointError: if a file is truncated, has another format, or contradicts itself, or two have the same tensor.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.notes: list[str] = []
        self.metadata: dict[str, str] = {}
        self._files: list[Any] = []
        self._entries: dict[str, tuple[Any, Path, Entry]] = {}
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        try:
            file = path.open("rb", buffering=0)
            self._files.append(file)
            header = read_header(file)
        except OSError as error:
            self.close()
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            self.close()
            raise CheckpointError(f"{path} is not a complete safetensors file: {first_line(error)}") from error
        self.metadata.update(header.metadata)
        for key, entry in header.entries.items():
            if key in self._entries:
                other = self._entries[key][1]
                self.close()
                raise CheckpointError(f"{path} and {other} both hold {key}")
            self.shapes[key] = entry.shape
            self._entries[key] = (file, path, entry)

    def elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        import torch

        file, path, entry = self._entries[key]
        code = entry.dtype
        if code not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"{path}: {key} is of type {code}, which this package does not read")
        dtype = getattr(torch, _SAFETENSORS_DTYPES[code])
        try:
            file.seek(entry.begin + dtype.itemsize * start)
            data = read_exactly(file, dtype.itemsize * (stop - start))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is cut off inside {key}") from error
        return torch.frombuffer(data, dtype=dtype).float() if data else torch.empty(0)

    def close(self) -> None:
        for file in self._files:
            file.close()


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, for use in our own message."""
    lines = str(error).splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def numel(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a tensor of this shape."""
    return math.prod(shape)
