"""What every benchmark's report says of itself, and where it is written."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def device_name() -> str:
    """The GPU, or what kind of processor there is."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def write_report(out: Path | None, packages: tuple[str, ...], **content: Any) -> None:
    """Write a report as JSON, if it is wanted, with the command and the versions it was made by."""
    if out is None:
        return
    head = {
        "command": " ".join(sys.argv),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(head | content, indent=1) + "\n")
