"""One call of a sweep, from the command line to the table at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import FrameType

from swinv2_train.config.checks import at_least, check_directory, one_of
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.metrics import check_recorded
from swinv2_train.config.multirun import Multirun, plan_multirun, run_multirun
from swinv2_train.config.overrides import refuse_no_experiment
from swinv2_train.config.schema import Config
from swinv2_train.config.sweep import SweepConfig
from swinv2_train.config.validate import validate
from swinv2_train.exit_codes import FAILED, FINISHED, STOPPED
from swinv2_train.launch.signals import STOP_FILE, give_back_signals, take_signals
from swinv2_train.shortage import remedied
from swinv2_train.sweep.job import (
    DONE,
    Job,
    JobRecord,
    SweepRecord,
    make_job,
    new_record,
    read_jobs,
    read_sweep,
    write_sweep,
)
from swinv2_train.sweep.run import Sweep, say, shown_command, this_process
from swinv2_train.sweep.show import counts_text, jobs_text


def run_sweep(overrides: Sequence[str], config_dir: Path | None, check: Callable[[Config], None]) -> int:
    """Run every job that is not done, and report all results; return the exit code.

    Args:
        check: called with the config of every job beforehand; raises if it cannot be run.

    Raises:
        ConfigError: if a job cannot be run, or the directory belongs to another sweep.
        RunError: if submitit cannot start the jobs, or loses one.
    """
    multirun = plan_multirun(overrides, config_dir)
    refuse_no_experiment(multirun.first, multirun.config.optim)
    settings = replace(multirun.config.sweep, direction=multirun.direction)
    _validate(settings)
    if multirun.config.launch.preflight_only:
        raise ConfigError("launch.preflight_only", "true", "applies to a single run; omit -m")
    name = settings.name or multirun.sweep_file or multirun.config.run.name
    directory = Path(settings.dir or f"outputs/sweeps/{name}")
    check_directory("sweep.dir", directory, written=not multirun.config.launch.dry_run)
    jobs = _jobs(multirun, directory)
    of_sweep = next((key for key in jobs[0].swept if key.startswith("sweep.")), None)
    if of_sweep:
        raise ConfigError(of_sweep, jobs[0].swept[of_sweep], "applies to the entire sweep; set it to one value")
    _check_jobs(jobs, multirun, config_dir, check)
    sweep = Sweep(
        name=name,
        directory=directory,
        settings=settings,
        fixed=multirun.fixed,
        planned=() if multirun.search else tuple(job.id for job in jobs),
        search=multirun.search,
        config_dir=config_dir,
        main=this_process(),
    )
    _check_family(sweep, jobs[0])
    if len(jobs) == 1 and not multirun.search:
        say("no key has several values; this sweep has a single job")
    if multirun.config.launch.dry_run:
        return _dry_run(sweep, jobs, multirun)
    _begin(sweep, jobs[0], overrides, config_dir)
    if multirun.minutes:
        say(f"every job is stopped after {multirun.minutes} minutes (hydra.launcher.timeout_min)")
    code = _run(sweep, multirun)
    return _conclude(sweep, jobs, code)


def _validate(sweep: SweepConfig) -> None:
    one_of("sweep.value", sweep.value, ("last", "best"))
    one_of("sweep.prune", sweep.prune, ("off", "median"))
    at_least("sweep.retries", sweep.retries, 0)
    at_least("sweep.prune_after_steps", sweep.prune_after_steps, 0)
    at_least("sweep.prune_min_jobs", sweep.prune_min_jobs, 1)
    if sweep.name is not None and (not sweep.name or "/" in sweep.name or sweep.name.startswith(".")):
        raise ConfigError("sweep.name", sweep.name, "must be a file name; sweep.dir=DIR sets the directory")


def _jobs(multirun: Multirun, directory: Path) -> list[Job]:
    """Return the jobs that are known beforehand, without duplicates; for a search, one that it may propose."""
    proposed = multirun.jobs or (multirun.first,)
    made = (make_job(overrides, multirun.fixed, directory) for overrides in proposed)
    return list({job.id: job for job in made}.values())


def _check_jobs(
    jobs: Sequence[Job], multirun: Multirun, config_dir: Path | None, check: Callable[[Config], None]
) -> None:
    """Check that every job can be run: first the quick checks of all jobs, then their data."""
    configs: dict[str, Config] = {}
    for job in jobs:
        with _named(job, jobs):
            known = job.overrides == multirun.first  # composing takes a third of a second
            configs[job.id] = deepcopy(multirun.config) if known else compose(job.overrides, config_dir)
            validate(configs[job.id])
            check_recorded(configs[job.id], configs[job.id].sweep.metric)
    _refuse_twins(jobs, configs)
    for job in jobs:
        with _named(job, jobs):
            check(configs[job.id])


def _refuse_twins(jobs: Sequence[Job], configs: dict[str, Config]) -> None:
    """Reject values that change nothing: the table would compare a run with itself."""
    seen: list[Job] = []
    for job in jobs:
        twin = next((other for other in seen if configs[other.id] == configs[job.id]), None)
        if twin is not None:
            hint = (
                f"jobs {twin.id} and {job.id} have the same config: the values that they differ in change nothing; "
                "remove one of them, or the override or file that overrides their keys"
            )
            raise ConfigError("", job.id, hint)
        seen.append(job)


@contextmanager
def _named(job: Job, jobs: Sequence[Job]) -> Iterator[None]:
    """Add the name of the job to an error, if there are several jobs."""
    try:
        yield
    except ConfigError as error:
        if len(jobs) == 1:
            raise
        raise ConfigError("", job.id, f"job {job.id}: {error}") from error


def _dry_run(sweep: Sweep, jobs: Sequence[Job], multirun: Multirun) -> int:
    say(f"sweep {sweep.name}: {sweep.settings.metric}, {sweep.settings.direction}; nothing is run")
    say(f"directory      {sweep.directory}")
    if multirun.search:
        say(f"jobs           {multirun.trials}, proposed one after the other from the values of those before, such as")
    for number, job in enumerate(jobs, 1):
        say(f"job {number} of {multirun.trials or len(jobs)}: {job.id}\n  {shown_command(sweep, job)}")
    return FINISHED


def _check_family(sweep: Sweep, job: Job) -> None:
    """Check that the directory does not belong to a sweep with another experiment or other fixed values."""
    there, jobs = read_sweep(sweep.directory), read_jobs(sweep.directory)  # detects a broken file now
    if there is None or there.family == job.family or not jobs:
        return
    theirs = ", ".join(item for item in there.shared if item not in job.shared)
    own = ", ".join(item for item in job.shared if item not in there.shared)
    parts = [f"with {theirs}"] * bool(theirs) + [f"without {own}"] * bool(own)
    hint = f"belongs to a sweep {' and '.join(parts)}; set a different sweep.name=NAME or sweep.dir=DIR"
    raise ConfigError("sweep.dir", sweep.directory, hint)


def _begin(sweep: Sweep, job: Job, overrides: Sequence[str], config_dir: Path | None) -> None:
    try:
        sweep.directory.mkdir(parents=True, exist_ok=True)
        (sweep.directory / STOP_FILE).unlink(missing_ok=True)
        settings = sweep.settings
        options = ["--config-dir", str(config_dir)] if config_dir else []
        command = ["swinv2-train", "-m", *overrides, *options]
        record = SweepRecord(
            sweep.name, settings.metric, settings.direction, settings.value, job.family, list(job.shared), command
        )
        write_sweep(sweep.directory, record)
    except OSError as error:
        raise ConfigError("sweep.dir", sweep.directory, f"cannot be written to ({remedied(error)})") from error


def _run(sweep: Sweep, multirun: Multirun) -> int:
    with _signals_end_it():
        try:
            run_multirun(multirun, sweep.name, sweep.directory, sweep.config_dir, sweep)
        except SystemExit as end:
            if end.code == STOPPED and multirun.submitit:
                (sweep.directory / STOP_FILE).touch()
                say("stopping: the jobs that run save and end; those that wait in a queue end when they begin")
            return int(end.code or FINISHED)
    return FINISHED


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """End the call on a stop signal between jobs and while jobs run elsewhere; a job that runs here gets it first."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED)

    before = take_signals(end)
    try:
        yield
    finally:
        give_back_signals(before)


def _conclude(sweep: Sweep, jobs: Sequence[Job], code: int) -> int:
    """Print the table of all jobs and what is left to do; return the exit code."""
    kept = {record.id: record for record in read_jobs(sweep.directory)}
    if sweep.search:
        shown = [record for record in kept.values() if record.family == jobs[0].family]
    else:
        shown = [kept.get(job.id) or new_record(job) for job in jobs]
    say("")
    say(jobs_text(_sorted(shown, sweep.settings.direction), sweep.settings.metric))
    say(f"{sweep.name} in {sweep.directory}: {counts_text(shown)}")
    others = len(kept.keys() - {record.id for record in shown})
    if others:
        say(f"{others} more job directories do not belong to this call")
    for message in sorted({record.message for record in shown if record.status == "finished" and record.message}):
        print(f"swinv2-train: {message}", file=sys.stderr, flush=True)
    if code == FAILED:
        return FAILED
    if shown and all(record.status in DONE for record in shown) and not (sweep.search and code == STOPPED):
        return FINISHED
    say("the same command resumes it")
    return STOPPED if code == STOPPED else FAILED


def _sorted(records: Sequence[JobRecord], direction: str) -> list[JobRecord]:
    """Sort by value, best first; jobs without a value last."""
    sign = -1 if direction == "maximize" else 1
    return sorted(records, key=lambda record: (record.metric is None, sign * (record.metric or 0.0), record.id))
