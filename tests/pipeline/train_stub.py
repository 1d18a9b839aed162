"""Stands in for `swinv2-train` behind a pipeline's launcher: leaves what a run leaves, in no time.

A file next to the run directory, `<run dir>.does`, selects what it does: `finish` (also without such a file),
`finish, best first` (its first checkpoint has the best metric), `die`
(of SIGKILL, after a first checkpoint), `wait` (for a stop signal, then save and exit with 75), `refuse` (exit with 2),
`refuse behind torchrun` (which makes a 1 of the 2).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from swinv2_train.checkpoint.disk import sha256
from swinv2_train.checkpoint.layout import MANIFEST, STATE, FileRecord, Manifest, manifest_text, rank_file, step_name
from swinv2_train.launch.status import read_status, write_status, write_text

SCORES = {10: 0.5, 20: 0.4, 30: 0.45}
"""eval/loss by step: the best is not the last."""
BEST_FIRST = {10: 0.3, 20: 0.4, 30: 0.45}
WEIGHTS = rank_file("model", 0, 1)
REFUSES = {"refuse": 2, "refuse behind torchrun": 1}


def save(run_dir: Path, step: int, loss: float) -> None:
    """A checkpoint that verifies, without tensors."""
    path = run_dir / "checkpoints" / step_name(step)
    (path / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    files = []
    for name in (STATE, WEIGHTS):
        (path / name).write_text("{}")
        files.append(FileRecord(name, 2, sha256(path / name)))
    metrics = {"eval/loss": loss}
    (path / MANIFEST).write_text(manifest_text(Manifest(step, 1, {}, {}, [], files, metrics)))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")


def main(arguments: list[str]) -> int:
    """Do what the command would do; return its exit code."""
    run_dir = Path(next(a for a in arguments if a.startswith("run.dir=")).removeprefix("run.dir=").strip('"'))
    plan = run_dir.with_name(f"{run_dir.name}.does")
    does = plan.read_text() if plan.exists() else "finish"
    with (run_dir.parent / "started.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    if does in REFUSES:
        return REFUSES[does]
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "resolved.yaml", "\n".join(arguments))  # as a run that accepts its config
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    done = read_status(run_dir).get("step", 0)
    for step, loss in (BEST_FIRST if does == "finish, best first" else SCORES).items():
        if step <= done:
            continue
        save(run_dir, step, loss)
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
