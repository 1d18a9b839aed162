"""`status.json` of a run directory: what the run is doing, for the launcher, for scripts and for a person."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file in one go: a reader, and a crash, see the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # ranks may write at the same time
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8
    os.replace(temporary, path)


def write_status(directory: Path, status: str, step: int) -> None:
    """Write `starting`, `running`, `stopped`, `finished` or `failed`, and the last step."""
    write_text(directory / "status.json", json.dumps({"status": status, "step": step}))


def read_status(directory: Path) -> dict[str, Any]:
    """What `status.json` says; empty where there is none."""
    try:
        return json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return {}
