"""`environment.json`: the environment of a run, one entry per start and resume.

Together with `resolved.yaml` it documents the origin of a result: command, machine, versions, and source commit.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from swinv2_train.reading import UnreadableError, put_aside, read_json
from swinv2_train.redact import redact
from swinv2_train.writing import write_bytes

PACKAGES = (
    "swinv2-train",
    "torch",
    "torchvision",
    "deepspeed",
    "hydra-core",
    "omegaconf",
    "webdataset",
    "numpy",
    "pillow",
    "tifffile",
    "imagecodecs",
    "av",
    "safetensors",
    "tensorboard",
    "wandb",
)
"""Distributions whose version is recorded; null if one is not installed."""

_PACKAGE_DIR = Path(__file__).resolve().parent.parent


def describe_environment() -> dict[str, Any]:
    """Return the command, machine, versions, and source of this process, as plain JSON values.

    Names of accelerators need a CUDA context, so call it in a rank, not in a launcher.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact(shlex.join([sys.executable, *sys.argv])),
        "working_directory": os.getcwd(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "cuda": _cuda_version(),
        "git": _own_commit(),
        "accelerators": _accelerators(),
        "cpu_count": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def append_environment(run_dir: Path, start_step: int) -> dict[str, Any]:
    """Append this start to `<run_dir>/environment.json`, a list, and return the entry.

    The file is replaced atomically, so a crash leaves the old or the new one. A file that is not a readable list is
    renamed to `environment.json.unreadable`, never overwritten.
    """
    path = run_dir / "environment.json"
    entry = {"start_step": start_step, **describe_environment()}
    starts: Any = []
    try:
        starts = read_json(path)
    except FileNotFoundError:
        pass
    except UnreadableError:
        starts = None
    if not isinstance(starts, list):
        put_aside(path)
        starts = []
    write_bytes(path, (json.dumps([*starts, entry], indent=2) + "\n").encode())
    return entry


@cache
def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda_version() -> str | None:
    torch = sys.modules.get("torch")
    return torch.version.cuda if torch is not None else None


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


@cache
def _own_commit() -> dict[str, Any] | None:
    """As `_source_commit`, once per process: what has been imported stays what it is."""
    return _source_commit(_PACKAGE_DIR)


def _source_commit(package_dir: Path) -> dict[str, Any] | None:
    """Return the package's commit and whether its files differ from it; None if the package is not in a checkout."""
    # An installed package may be inside another checkout (a virtual environment in a repository), whose commit would be
    # wrong. So first check that git tracks our file.
    if _git(package_dir, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = _git(package_dir, "rev-parse", "HEAD"), _git(package_dir, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    """Return the output of a git command; None if git is missing, too slow, or fails."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
