"""Damaged files as input of the product: tar headers, indexes and their neighbors, files of runs.

    python scripts/bench/fuzz_files.py --out scripts/bench/results/fuzz-files.json
    python scripts/bench/fuzz_files.py --kind tar --only 17        # the same case

Every case damages a small intact file and compares what the product reads with the intact twin. A case passes if the
samples or the run are the same, if a message reports the damage, or if the damage produced another valid archive that
Python's tarfile reads the same way. Cases run in separate processes, each with a time limit. Exit code 1 means that a
case ended in a traceback, ran past its limit, or changed something silently.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the tests, which are not in a package

from report import write_report

from tests.faults.fuzz import OUTCOMES, Outcome
from tests.faults.fuzz_runs import run_case
from tests.faults.fuzz_shards import index_case, tar_case
from tests.runs import make_data, run_command, tiny_run

COUNTS = {"tar": 600, "index": 600, "run": 200}
BAD = ("silent", "traceback", "hang")


def work(pipe: Connection, finished: Path) -> None:
    """Run the cases that arrive through a pipe, and answer each with its outcome."""
    import torch  # noqa: F401 -- here, or the first case that needs it would take longer than the others

    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        kind, seed = asked
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
        try:
            if kind == "run":
                pipe.send(run_case(seed, folder, finished))
            else:
                pipe.send({"tar": tar_case, "index": index_case}[kind](seed, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Worker:
    """A process that runs cases, and is replaced if one of them does not end."""

    def __init__(self, finished: Path, limit: float) -> None:
        self._finished, self._limit = finished, limit
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, self._finished))
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def run(self, kind: str, seed: int) -> Outcome:
        """Return the outcome of a case; `hang` if it exceeds the limit, `traceback` if it kills the process."""
        self._pipe.send((kind, seed))
        try:
            if self._pipe.poll(self._limit):
                return self._pipe.recv()
            outcome = Outcome("hang", "", f"no answer after {self._limit:g} s")
        except EOFError:
            outcome = Outcome("traceback", "", "the process died")
        self._process.kill()
        self._process.join()
        self._start()
        return outcome

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def table(found: dict[str, Counter[str]]) -> str:
    """Return the counts by kind and outcome."""
    names = (*OUTCOMES, "hang")
    lines = [f"{'':<8}" + "".join(f"{name:>11}" for name in names)]
    lines += [f"{kind:<8}" + "".join(f"{counts[name]:>11,}" for name in names) for kind, counts in found.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"cases of this kind (default: {count})")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=COUNTS, help="only this kind")
    parser.add_argument("--only", type=int, help="only the case of this number, shown in full; needs --kind")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per case (default: 60)")
    parser.add_argument("--out", type=Path, help="path of the report")
    options = parser.parse_args()
    if options.only is not None and options.kind is None:
        parser.error("--only needs --kind")
    kinds = [options.kind] if options.kind else list(COUNTS)
    with tempfile.TemporaryDirectory() as temporary:
        finished = Path(temporary) / "run"
        if "run" in kinds:
            overrides = tiny_run(make_data(Path(temporary) / "data"), finished)
            code, output = run_command(["swinv2-train", *overrides])
            if code:
                print(output, file=sys.stderr)
                return 1
        worker = Worker(finished, options.limit)
        found: dict[str, Counter[str]] = {}
        bad: list[dict[str, Any]] = []
        for kind in kinds:
            counts = found[kind] = Counter()
            numbers = range(options.seed, options.seed + getattr(options, kind))
            for seed in numbers if options.only is None else [options.only]:
                outcome = worker.run(kind, seed)
                counts[outcome.outcome] += 1
                if outcome.outcome in BAD or options.only is not None:
                    bad.append({"kind": kind, "case": seed, **vars(outcome)})
                    print(f"{kind} {seed}: {outcome.outcome}: {outcome.damage}\n{outcome.detail}", flush=True)
        worker.close()
    print(table(found))
    write_report(
        options.out, ("numpy", "fsspec", "torch"), first_case=options.seed,
        results={kind: dict(counts) for kind, counts in found.items()}, bad=bad,
    )  # fmt: skip
    return int(any(counts[name] for counts in found.values() for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
