"""Stands in for `swinv2-train` behind a pipeline's launcher: leaves what a run leaves, in no time.

What it does is told by a file beside the run directory, `<run dir>.does`: `finish` (also without such a file), `die`
(of SIGKILL, after a first checkpoint), `wait` (for a stop signal, then save and exit with 75), `refuse` (exit with 2).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from swinv2_train.checkpoint.layout import MANIFEST, Manifest, manifest_text, step_name
from swinv2_train.engine.status import read_status, write_status

SCORES = {10: 0.5, 20: 0.4, 30: 0.45}
"""eval/loss by step: the best is not the last."""


def save(run_dir: Path, step: int) -> None:
    """A checkpoint without tensors."""
    path = run_dir / "checkpoints" / step_name(step)
    path.mkdir(parents=True, exist_ok=True)
    metrics = {"eval/loss": SCORES[step]}
    (path / MANIFEST).write_text(manifest_text(Manifest(step, 1, {}, {}, [], [], metrics)))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")


def main(arguments: list[str]) -> int:
    """What the command would do; returns its exit code."""
    run_dir = Path(next(a for a in arguments if a.startswith("run.dir=")).removeprefix("run.dir=").strip('"'))
    plan = run_dir.with_name(f"{run_dir.name}.does")
    does = plan.read_text() if plan.exists() else "finish"
    with (run_dir.parent / "started.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    if does == "refuse":
        return 2
    run_dir.mkdir(parents=True, exist_ok=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    done = read_status(run_dir).get("step", 0)
    for step in SCORES:
        if step <= done:
            continue
        save(run_dir, step)
        write_status(run_dir, "running", step)
        if does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "wait":
            signal.sigwait({signal.SIGTERM, signal.SIGINT})
            write_status(run_dir, "stopped", step)
            return 75
    write_status(run_dir, "finished", max(SCORES))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))  # behind `swinv2-train`
