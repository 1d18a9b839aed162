"""Runs with random faults, restarted until they finish, and compared with twins without faults.

    python scripts/bench/faults.py --trials 50 --out scripts/bench/results/faults.json
    python scripts/bench/faults.py --seed 0 --only 17        # the same trial, as far as its timing can be repeated

A trial is one small run on the CPU with one to three faults at random moments, on one to three ranks (`--most-ranks`).
If its number of ranks never changes, its metrics, weights, and moments must be bitwise equal to the twin's; otherwise
its losses must agree within 1e-4 relative in fp32. In both cases every step must consume its own samples exactly once.
Exit code 1 means that a trial failed; its folder is kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the tests, which are not in a package

from report import write_report

from swinv2_train.exit_codes import FINISHED
from tests.faults import damage
from tests.faults.job import COMMAND, FORKED, FaultyRun, Job
from tests.faults.nursery import Nursery
from tests.faults.patches import Hit
from tests.faults.verdict import judge
from tests.runs import environment, make_data, tiny_run

STEPS, BATCH = 24, 12
OPTIONS = (
    f"optim.steps={STEPS}", f"optim.global_batch={BATCH}", "checkpoint.every_steps=4", "checkpoint.keep_last=3",
    "checkpoint.retry_seconds=0.1", "eval.every_steps=6", "eval.figure_every_steps=0", "tracking.log_every_steps=1",
)  # fmt: skip
COMMAND_EVERY = 7
"""Every N-th trial starts the command itself; the others start only its ranks, which is faster."""
NAN_POSITION = 7 * BATCH + 5
NONE_VALID = "none of the checkpoints in"
MORE_STARTS = 3
"""Maximum number of starts without faults for a run to finish."""

KILL_ONE_STEP, KILL_ALL_STEP = "one rank killed in a step", "all killed in a step"
KILL_ONE_SAVE, KILL_ALL_SAVE = "one rank killed in a save", "all killed in a save"
TERM_ONE, TERM_ALL, USR1_ONE = "SIGTERM to one rank", "SIGTERM to all", "SIGUSR1 to one rank"
TERM_EVALUATION = "SIGTERM in an evaluation"
FULL, REMOVED, NAN = "disk full for a save", "checkpoints removed in the run", "NaN in an input"
ENDING = (
    KILL_ONE_STEP, KILL_ALL_STEP, KILL_ONE_SAVE, KILL_ALL_SAVE, TERM_ONE, TERM_ALL, USR1_ONE, TERM_EVALUATION,
)  # fmt: skip
"""Faults that end a start."""
DURING = (FULL, REMOVED, NAN)
"""Faults that a start survives."""
BETWEEN = tuple(damage.DAMAGES)
"""Faults between two starts."""


@dataclass
class Start:
    """One start of a trial, with the faults before and during it."""

    ranks: int
    seed: int
    """Seed of the random moments."""
    late: bool = False
    """True if it must reach a checkpoint, because that will be damaged after it."""
    before: list[str] = field(default_factory=list)
    during: list[str] = field(default_factory=list)
    ending: str | None = None


@dataclass
class Plan:
    """A trial before it is run."""

    way: str
    overrides: list[str]
    nan: bool
    """True if a sample is NaN, in every start that reaches it."""
    starts: list[Start]


@dataclass
class Result:
    """Result of a trial."""

    trial: int
    way: str
    ranks: list[int]
    faults: list[str]
    """Faults that hit."""
    missed: list[str]
    """Faults whose moment did not come."""
    codes: list[int]
    """Exit codes of the starts."""
    lost: int = 0
    repeated: int = 0
    hung: int = 0
    """Ranks that did not end after another one was gone."""
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def same_ranks(self) -> bool:
        return len(set(self.ranks)) == 1

    @property
    def good(self) -> bool:
        return not (self.lost or self.repeated or self.hung or self.differences)

    def line(self) -> str:
        missed = f", missed: {', '.join(self.missed)}" if self.missed else ""
        kind = "bitwise equal to the twin's" if self.same_ranks else "within the tolerance"
        verdict = kind if self.good else "FAILED"
        ranks = "-".join(map(str, self.ranks))
        return (
            f"trial {self.trial}: {self.way}, ranks {ranks}, {', '.join(self.faults) or 'no fault'}{missed}: "
            f"{verdict} ({self.seconds:.0f} s)"
        )


def fault_kinds(seed: int, trial: int) -> list[str]:
    """Return the faults of a trial; the first one ends the first start.

    They are dealt from shuffled decks, so that a few dozen trials cover every kind.
    """
    rng = random.Random(seed)
    first: list[str] = []
    further: list[str] = []
    for _ in range(trial + 1):
        first = first or rng.sample(ENDING, len(ENDING))
        kinds = [first.pop()]
        for _ in range(rng.randint(0, 2)):
            further = further or rng.sample(ENDING + DURING + BETWEEN, len(ENDING + DURING + BETWEEN))
            kinds.append(further.pop())
    return kinds


def make_plan(seed: int, trial: int, most_ranks: int) -> Plan:
    """Return the plan of a trial, a function of the numbers."""
    rng = random.Random(f"{seed}/{trial}")
    kinds = fault_kinds(seed, trial)
    constant = rng.choice((None, rng.randint(1, most_ranks)))

    def start() -> Start:
        return Start(constant or rng.randint(1, most_ranks), rng.randrange(2**32))

    starts = [start()]
    for kind in kinds:
        if kind in ENDING:
            starts[-1].ending = kind
            starts.append(start())
        elif kind in BETWEEN:
            starts[-1].before.append(kind)
            starts[-2].late = True
        elif kind != NAN:
            starts[-1].during.append(kind)
    workers = int(rng.random() < 0.2)
    background = "true" if rng.random() < 0.75 else "false"
    return Plan(
        COMMAND if trial % COMMAND_EVERY == COMMAND_EVERY - 1 else FORKED,
        [f"data.num_workers={workers}", f"checkpoint.background={background}"],
        NAN in kinds,
        starts,
    )


def random_step(start: Start, rng: random.Random) -> int:
    """Return the step in or after which a start is hit; every fourth step is saved."""
    return rng.randint(1, 6) + 4 * start.late


def planted(start: Start, nan: bool, rng: random.Random) -> dict[str, Any]:
    """Return what is injected into the ranks of a start."""
    rank, step = rng.randrange(start.ranks), random_step(start, rng)
    hits = {
        KILL_ONE_STEP: Hit("step", step, signal.SIGKILL, rank, rng.random()),
        TERM_ONE: Hit("step", step, signal.SIGTERM, rank, rng.random()),
        USR1_ONE: Hit("step", step, signal.SIGUSR1, rank, rng.random()),
        KILL_ONE_SAVE: Hit("save", 1 + start.late, signal.SIGKILL, rank, flush=rng.randint(1, 2 if rank else 4)),
        TERM_EVALUATION: Hit("evaluation", rng.randint(1 + start.late, 2), signal.SIGTERM, rank),
    }
    return {
        "hits": (hits[start.ending],) if start.ending in hits else (),
        "nan_positions": (NAN_POSITION,) if nan else (),
        "hold_after": rng.randint(1, 6) if REMOVED in start.during else 0,
        "slow_saves": 0.05 if start.ending == KILL_ALL_SAVE else 0.0,
        "failing_saves": rng.randint(1, 6) if FULL in start.during else 0,
    }


def strike(job: Job, start: Start, rng: random.Random) -> bool:
    """Apply a fault to a job from outside; return False if its moment did not come."""
    if start.ending == KILL_ALL_SAVE:
        reached = job.wait_for_step(5 * start.late) and job.wait_for_save()
    else:
        reached = job.wait_for_step(random_step(start, rng))
    time.sleep(0.2 * rng.random())
    if reached and not job.ended:
        if start.ending == TERM_ALL:
            job.signal(signal.SIGTERM)
        else:
            job.kill_all()
        return True
    return False


def run_start(run: FaultyRun, plan: Plan, start: Start, result: Result) -> int:
    """Run one start with its faults; return the exit code."""
    rng = random.Random(start.seed)
    hit = {kind: damage.spoil(run.directory / "checkpoints", kind, rng) for kind in start.before}
    job = run.start(start.ranks, way=plan.way, **planted(start, plan.nan, rng))
    if REMOVED in start.during:
        hit[REMOVED] = job.wait_for_hold()
        damage.remove(run.directory / "checkpoints")
        job.release()
    if start.ending in (KILL_ALL_STEP, KILL_ALL_SAVE, TERM_ALL):
        hit[start.ending] = strike(job, start, rng)
    code = job.wait()
    lines = [line for rank in range(start.ranks) for line in job.lines(rank)]
    if start.ending is not None:
        hit.setdefault(start.ending, any("hit" in line for line in lines))
    if FULL in start.during:
        hit[FULL] = any("full" in line for line in lines)
    for kind, happened in hit.items():
        (result.faults if happened else result.missed).append(kind)
    result.ranks.append(start.ranks)
    result.codes.append(code)
    result.hung += len(job.stuck)
    return code


class Soak:
    """Trials over the same shards, with shared twins."""

    def __init__(self, folder: Path, seed: int, most_ranks: int, nursery: Nursery) -> None:
        self.folder, self.seed, self.most_ranks, self.nursery = folder, seed, most_ranks, nursery
        self.shards = make_data(folder / "shards")
        self._twins: dict[tuple[int, bool], Path] = {}

    def new_run(self, name: str, overrides: list[str]) -> FaultyRun:
        directory = self.folder / name / "run"
        return FaultyRun(directory, tiny_run(self.shards, directory, *OPTIONS, *overrides), self.nursery)

    def twin(self, ranks: int, nan: bool) -> Path:
        """Return the directory of an uninterrupted run."""
        if (ranks, nan) not in self._twins:
            run = self.new_run(f"twin-{ranks}{'-nan' if nan else ''}", ["data.num_workers=0"])
            if run.go(ranks, nan_positions=(NAN_POSITION,) if nan else ()) != FINISHED:
                raise RuntimeError(f"a run without faults failed:\n{run.jobs[-1].output}")
            self._twins[ranks, nan] = run.directory
        return self._twins[ranks, nan]

    def trial(self, number: int) -> Result:
        """Run one trial to its result."""
        plan, begin = make_plan(self.seed, number, self.most_ranks), time.monotonic()
        result = Result(number, plan.way, [], [], [], [])
        run = self.new_run(f"trial-{number}", plan.overrides)
        try:
            code = -1
            for start in plan.starts:
                code = run_start(run, plan, start, result)
            for _ in range(MORE_STARTS):
                if code == FINISHED:
                    break
                if NONE_VALID in run.jobs[-1].output:  # all were damaged: follow the message
                    damage.remove(run.directory / "checkpoints")
                code = run_start(run, plan, Start(plan.starts[-1].ranks, 0), result)
            if code == FINISHED:
                self.judge(run, plan, result)
            else:
                result.differences.append(f"the last start ended with code {code}: {run.jobs[-1].output[-2000:]}")
        except (TimeoutError, OSError, ValueError) as error:
            result.differences.append(f"{type(error).__name__}: {error}")
        finally:
            run.close()
        result.seconds = time.monotonic() - begin
        if result.good:
            shutil.rmtree(self.folder / f"trial-{number}")
        return result

    def judge(self, run: FaultyRun, plan: Plan, result: Result) -> None:
        """Compare a finished run with its twin."""
        twin = self.twin(result.ranks[0] if result.same_ranks else 1, plan.nan)
        verdict = judge(run.directory, run.trace, twin, total_steps=STEPS, global_batch=BATCH, exact=result.same_ranks)
        result.faults += [NAN] * plan.nan
        result.lost, result.repeated = verdict.lost, verdict.repeated
        result.differences += verdict.differences


def summary(results: list[Result]) -> dict[str, Any]:
    """The table."""
    return {
        "trials": len(results),
        "starts": sum(len(result.ranks) for result in results),
        "faults": sum(len(result.faults) for result in results),
        "faults_by_kind": dict(Counter(kind for result in results for kind in result.faults).most_common()),
        "faults_missed": sum(len(result.missed) for result in results),
        "samples": len(results) * STEPS * BATCH,
        "trials_on_the_same_ranks": sum(result.same_ranks for result in results),
        "samples_lost": sum(result.lost for result in results),
        "samples_repeated": sum(result.repeated for result in results),
        "not_bit_equal": sum(bool(result.differences) for result in results if result.same_ranks),
        "out_of_tolerance": sum(bool(result.differences) for result in results if not result.same_ranks),
        "ranks_that_hung": sum(result.hung for result in results),
    }


def table(values: dict[str, Any]) -> str:
    """Return the summary for display."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"  {kind:<32} {count:>6}" for kind, count in value.items()]
        else:
            lines.append(f"{name.replace('_', ' '):<34} {value:>6}")
    return "\n".join(lines)


def run_trials(numbers: list[int], seed: int, most_ranks: int, folder: Path) -> list[Result]:
    """Run trials one after the other; print a line for each as it ends."""
    results = []
    with Nursery(environment()) as nursery:
        soak = Soak(folder, seed, most_ranks, nursery)
        for number in numbers:
            result = soak.trial(number)
            results.append(result)
            print(result.line(), flush=True)
            if not result.good:
                print("\n".join(f"  {line}" for line in result.differences[:5]))
                print(
                    f"  kept: {folder / f'trial-{number}'}; again: {sys.argv[0]} --seed {seed} "
                    f"--most-ranks {most_ranks} --only {number}"
                )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-ranks", type=int, default=3, help="every start has one to N ranks")
    parser.add_argument("--only", type=int, help="run this one trial")
    parser.add_argument("--out", type=Path, help="write a report in JSON")
    options = parser.parse_args()
    numbers = [options.only] if options.only is not None else list(range(options.trials))
    folder, begin = Path(tempfile.mkdtemp(prefix="swinv2-faults-")), time.monotonic()
    results = run_trials(numbers, options.seed, options.most_ranks, folder)
    values = summary(results)
    print(table(values))
    write_report(
        options.out,
        ("swinv2-train", "torch", "deepspeed"),
        seed=options.seed,
        seconds=round(time.monotonic() - begin),
        table=values,
        trials=[asdict(result) for result in results],
    )
    good = all(result.good for result in results)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
