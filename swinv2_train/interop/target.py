"""Formats of an export, and the checks of its target that need neither torch nor a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from math import prod
from pathlib import Path

from swinv2_train.checkpoint import disk
from swinv2_train.checkpoint.tensor_file import DTYPES
from swinv2_train.config.errors import ConfigError

OWN, TIMM, HUGGINGFACE, ONNX, TORCH_EXPORT = EXPORTS = (
    "swinv2-train",
    "timm",
    "huggingface",
    "onnx",
    "torch-export",
)
"""Formats that `export` can write."""
PROGRAM_FILES = {ONNX: "model.onnx", TORCH_EXPORT: "model.pt2"}
_NEEDED = {HUGGINGFACE: ("transformers",), ONNX: ("onnx", "onnxscript", "onnxruntime")}


def check_target(out: Path, layout: str, dtype: str) -> None:
    """Check that the target is new, and that the format can be written here.

    Args:
        layout: one of `EXPORTS`.
        dtype: a key of `DTYPES`.

    Raises:
        ConfigError: with the obstacle and the fix.
    """
    if layout not in EXPORTS:
        raise ConfigError("", layout, f"unknown format {layout!r}; use one of {', '.join(EXPORTS)}")
    if out.exists():
        raise ConfigError("", out, f"{out} already exists; remove it or use another name")
    above = disk.existing(out)
    if not above.is_dir():
        raise ConfigError("", out, f"{above} is not a directory")
    if layout in PROGRAM_FILES and dtype != "fp32":
        hint = f"{layout} programs are always written in fp32, and runtimes convert them at load time; omit --dtype"
        raise ConfigError("", dtype, hint)
    missing = [name for name in _NEEDED.get(layout, ()) if importlib.util.find_spec(name) is None]
    if missing:
        hint = f"--format {layout} needs {', '.join(missing)}: pip install 'swinv2-train[export]'"
        raise ConfigError("", layout, hint)


def refuse_program(path: Path) -> None:
    """Reject an exported program, or the directory of one, as a source of weights.

    Raises:
        ConfigError: if it is one.
    """
    for layout, name in PROGRAM_FILES.items():
        if (path / name).is_file() if path.is_dir() else path.suffix == Path(name).suffix:
            hint = f"{path} is a program ({layout}), whose weights cannot be read back"
            raise ConfigError("", path, f"{hint}; name the run or checkpoint that it was exported from")


def check_room(out: Path, shapes: Iterable[tuple[int, ...]], dtype: str) -> None:
    """Check that tensors of these shapes fit onto the disk of `out`, which need not exist.

    Raises:
        CheckpointError: if they do not.
    """
    size = sum(map(prod, shapes)) * DTYPES[dtype][1]
    disk.check_space(out, size, "delete other files on this disk, or write to another directory")
