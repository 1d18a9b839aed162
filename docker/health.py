"""Health of a container: 1 if its run has failed or has not written a line for too long; else 0.

The run is that of RUN_DIR, or the one in ./outputs that wrote last. A container without a run, for example one that
packs data, is healthy. HEALTH_MINUTES (60) must exceed the time between two lines of metrics, including a long
evaluation. The run's own watchdog ends ranks that hang; this check is for monitoring from outside.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def run_directory() -> Path | None:
    """Return the directory of the run to check."""
    if os.environ.get("RUN_DIR"):
        return Path(os.environ["RUN_DIR"])
    found = sorted(Path("outputs").glob("**/status.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def problem(directory: Path, minutes: float) -> str | None:
    """Return a description of a run's problem; None if it has none."""
    try:
        status = json.loads((directory / "status.json").read_text()).get("status")
    except FileNotFoundError:
        return None  # it has not begun yet
    if status == "failed":
        return f"{directory}: the run has failed"
    written = [path.stat().st_mtime for name in ("status.json", "metrics.jsonl") if (path := directory / name).exists()]
    silent = (time.time() - max(written)) / 60
    if status == "running" and silent > minutes:
        return f"{directory}: nothing was written for {silent:.0f} minutes"
    return None


if __name__ == "__main__":
    directory = run_directory()
    found = problem(directory, float(os.environ.get("HEALTH_MINUTES", "60"))) if directory else None
    print(found or "no run here has a problem")
    sys.exit(1 if found else 0)
