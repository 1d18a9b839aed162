"""Common content and location of the benchmark reports."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def device_name() -> str:
    """Return the name of the GPU, or the kind of processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def write_report(out: Path | None, packages: tuple[str, ...], **content: Any) -> None:
    """Write a report as JSON, if requested, with the command and the versions that produced it."""
    if out is None:
        return
    head = {
        "command": " ".join(sys.argv),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(head | content, indent=1) + "\n")
