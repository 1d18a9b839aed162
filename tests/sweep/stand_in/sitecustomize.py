"""Stands in for a job's `swinv2-train` where this folder is on the PYTHONPATH: leaves what a run leaves, in no time.

What it does is told by `does.json` in the sweep's directory, by a part of the job's id: `die` (exit with 1 and a
sentence), `die once`, `refuse` (exit with 2 and a sentence), `wait` (for a stop signal after step 4, then save and exit
with 75). Its eval/loss is |log10(optim.lr) + 3| + 0.01 * seed + 1 / step, at steps 4 and 8, and 0.5 more at lr=0.1.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path


def _leave(run_dir: Path, step: int, status: str) -> None:
    (run_dir / "status.json").write_text(json.dumps({"status": status, "step": step}))


def _run(given: dict[str, str]) -> int:
    run_dir = Path(given["run.dir"])
    plan = run_dir.parent / "does.json"
    does = json.loads(plan.read_text()) if plan.exists() else {}
    what = next((what for part, what in does.items() if part in run_dir.name), "finish")
    with (run_dir.parent / "started.txt").open("a") as file:
        file.write(f"{run_dir.name}\n")
    if what == "refuse":
        print("swinv2-train: optim.lr=0: there is no such rate", file=sys.stderr)
        return 2
    times = (run_dir.parent / "started.txt").read_text().splitlines().count(run_dir.name)
    if what == "die" or (what == "die once" and times == 1):
        print("swinv2-train: the disk is full", file=sys.stderr)
        return 1
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    rate, seed = float(given.get("optim.lr", "1e-3")), int(given.get("seed", "0"))
    status = run_dir / "status.json"
    done = json.loads(status.read_text())["step"] if status.exists() else 0
    for step in (4, 8):
        if step <= done:
            continue
        value = abs(math.log10(rate) + 3) + 0.01 * seed + 1 / step
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "eval/loss": value, "eval/top1": 1 / step}) + "\n")
        _leave(run_dir, step, "running")
        if what == "wait" and signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, 60):
            _leave(run_dir, step, "stopped")
            return 75
    _leave(run_dir, 8, "finished")
    return 0


if sys.orig_argv[1:3] == ["-m", "swinv2_train.cli.train"] and any("sweep.job=" in item for item in sys.orig_argv):
    _pairs = (item.partition("=") for item in sys.orig_argv[3:])
    _code = _run({key: value.strip('"') for key, _, value in _pairs})
    sys.stderr.flush()
    os._exit(_code)
