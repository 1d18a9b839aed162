"""`status.json` of a run directory: the state of the run, for the launcher, for scripts, and for display."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swinv2_train.reading import UnreadableError, is_count, put_aside, read_object
from swinv2_train.writing import write_bytes

STATUSES = ("starting", "running", "stopped", "finished", "failed")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader, or a crash, sees the old text or the new. A folder in its place is kept."""
    if path.is_dir() and not path.is_symlink():
        put_aside(path)
    write_bytes(path, text.encode(errors="backslashreplace"))  # file names need not be UTF-8


def write_status(directory: Path, status: str, step: int) -> None:
    """Write `starting`, `running`, `stopped`, `finished`, or `failed`, and the last step."""
    write_text(directory / "status.json", json.dumps({"status": status, "step": step}))


def read_status(directory: Path) -> dict[str, Any]:
    """Return `status` and `step` of `status.json`; empty if it is missing or unusable."""
    try:
        values = read_object(directory / "status.json")
    except (FileNotFoundError, UnreadableError):
        return {}
    if values.get("status") not in STATUSES:
        return {}
    step = values.get("step")
    return {"status": values["status"], "step": step if is_count(step) else 0}
