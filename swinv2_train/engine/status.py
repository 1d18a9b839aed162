"""`status.json` of a run directory: what the run is doing, for the launcher, for scripts and for a person."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_status(directory: Path, status: str, step: int) -> None:
    """Write `running`, `stopped`, `finished` or `failed`, and the last step. The file is replaced in one go."""
    temporary = directory / ".status.json"
    temporary.write_text(json.dumps({"status": status, "step": step}))
    os.replace(temporary, directory / "status.json")


def read_status(directory: Path) -> dict[str, Any]:
    """What `status.json` says; empty where there is none."""
    try:
        return json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return {}
