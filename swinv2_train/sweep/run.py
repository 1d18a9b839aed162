"""Run one job of a sweep: skip it if it is done, resume it if it was stopped, retry it if it failed.

The same code runs here, under submitit on this machine, and inside a Slurm job; the result of a job is in its files.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.override_text import quoted
from swinv2_train.config.overrides import key_of
from swinv2_train.config.sweep import SweepConfig
from swinv2_train.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED, WRONG_USE
from swinv2_train.launch.command import StopSignals, run_command, train_command
from swinv2_train.launch.lock import RunLock, check_free
from swinv2_train.launch.signals import STOP_FILE, signal_name
from swinv2_train.launch.status import read_status
from swinv2_train.redact import redact
from swinv2_train.sweep.job import DONE, Job, JobRecord, make_job, new_record, read_job, write_job
from swinv2_train.sweep.values import Pruner, judged, metric_names, metric_values, missing_metric

LOCKS = ".locks"
_WAIT_SECONDS = 0.5
_KEPT_LINES = 50
_REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)
"""Signal that Slurm sends before a job's time limit; submitit then requeues the job."""


@dataclass(frozen=True)
class Sweep:
    """Values that all jobs of a sweep share. Picklable: jobs may run in other processes, on other hosts."""

    name: str
    directory: Path
    settings: SweepConfig
    fixed: frozenset[str]
    """Keys of the overrides that all jobs share."""
    planned: tuple[str, ...] = ()
    """Ids of the jobs, in order, if they are known."""
    search: bool = False
    """True if the values of jobs determine which job is next."""
    config_dir: Path | None = None
    main: str = ""
    """Identifier of the process that started the sweep; see `this_process`."""

    def run_dir(self, job: Job) -> Path:
        """Return the run directory of a job."""
        return self.directory / job.id

    def arguments(self, job: Job) -> list[str]:
        """Return the arguments of `swinv2-train` that run a job."""
        own = {
            "run.name": job.id,
            "run.dir": self.run_dir(job),
            "tracking.wandb_group": self.name,
            "sweep.name": self.name,
            "sweep.job": job.id,
        }
        given = [key_of(item) for item in job.overrides]
        added = [f"{key}={quoted(value)}" for key, value in own.items() if key not in given]
        options = ["--config-dir", str(self.config_dir)] if self.config_dir else []
        return [*job.overrides, *added, *options]

    def __call__(self, overrides: Sequence[str]) -> float | None:
        """Run the job of some overrides to its end.

        Returns:
            Its value; None if it has none and counts as failed.

        Raises:
            SystemExit: in the process of the sweep, if a signal stops it, or if a search is impossible.
        """
        job = make_job(overrides, self.fixed, self.directory)
        here = self.main == this_process()
        if _is_further_task():
            _follow(self, job)
            return None
        signals = StopSignals()
        try:
            record = run_job(self, job, signals)
        finally:
            signals.close()
        if here and (signals.received or _stop_file(self).exists()):
            raise SystemExit(STOPPED)
        if not here:
            _requeue(signals.received)
        if record is None or record.status not in DONE:
            return None
        if here and self.search and record.metric is None:
            raise SystemExit(FAILED)  # a search needs values; the job's message has reported the cause
        return record.metric


def this_process() -> str:
    """Return a name of this process that is unique in a cluster."""
    return f"{socket.gethostname()}:{os.getpid()}"


def say(text: str) -> None:
    """Print a line for the user. The terminal may be gone; the job must still be supervised."""
    with contextlib.suppress(OSError):
        print(redact(text), flush=True)


def run_job(sweep: Sweep, job: Job, signals: StopSignals) -> JobRecord | None:
    """Run a job to its end, as far as possible; return None if another process is running it."""
    with _held(sweep, job) as free:
        if not free:
            say(f"{job.id}: runs elsewhere")
            return None
        run_dir = sweep.run_dir(job)
        run_dir.mkdir(parents=True, exist_ok=True)
        record = read_job(run_dir) or new_record(job)
        tries = 0
        while _wait_for_the_run(run_dir, signals):
            if _settled(sweep, job, record):
                say(f"{job.id}: {'' if tries else 'was '}{_result(sweep, record)}")
                break
            if _stop_file(sweep).exists():
                break
            _try(sweep, job, record, signals)
            tries += 1
            if record.status not in ("failed", *DONE):
                say(f"{job.id}: {_result(sweep, record)}")
                break
            if record.status == "failed":
                again = tries <= sweep.settings.retries
                say(f"{job.id}: {record.message}{'; retrying' if again else ''}")
                if not again:
                    break
        return record


@contextmanager
def _held(sweep: Sweep, job: Job) -> Iterator[bool]:
    """Keep other processes of the same sweep from running a job."""
    directory = sweep.directory / LOCKS / job.id
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = RunLock(directory)
    except ConfigError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _wait_for_the_run(run_dir: Path, signals: StopSignals) -> bool:
    """Wait until no run is active in a directory (one briefly outlives a killed sweep); False on a signal."""
    said = False
    while not signals.received:
        try:
            check_free(run_dir)
            return True
        except ConfigError:
            if not said:
                say(f"{run_dir}: a run is still active there; waiting for its end")
                said = True
            time.sleep(_WAIT_SECONDS)
    return False


def _value(sweep: Sweep, run_dir: Path) -> float | None:
    settings = sweep.settings
    return judged(metric_values(run_dir, settings.metric), settings.value, settings.direction)


def _is_finished(run_dir: Path) -> bool:
    return read_status(run_dir).get("status") == "finished"


def _is_done(sweep: Sweep, job: Job, record: JobRecord) -> bool:
    return _is_finished(sweep.run_dir(job)) or (record.status == "pruned" and sweep.settings.prune != "off")


def _settled(sweep: Sweep, job: Job, record: JobRecord) -> bool:
    """Return whether the job is done, after updating its record from the run directory."""
    run_dir, metric = sweep.run_dir(job), sweep.settings.metric
    if not _is_done(sweep, job, record):
        return False
    if _is_finished(run_dir):
        record.status, record.message = "finished", ""
    record.metric = _value(sweep, run_dir)
    if record.metric is None:
        record.message = missing_metric(metric, metric_names(run_dir))
    write_job(run_dir, record)
    return True


def _try(sweep: Sweep, job: Job, record: JobRecord, signals: StopSignals) -> None:
    """Start the run of a job once, wait for its end, and record the result."""
    run_dir = sweep.run_dir(job)
    record.status, record.message = "running", ""
    record.tries += 1
    write_job(run_dir, record)
    place = sweep.planned.index(job.id) + 1 if job.id in sweep.planned else 0
    say(f"== job {f'{place} of {len(sweep.planned)}: ' if place else ''}{job.id} ==")
    pruner = Pruner(job, sweep.directory, sweep.settings) if sweep.settings.prune == "median" else None
    stop_file, begun, asked = _stop_file(sweep), time.time(), ""

    def stop() -> bool:
        nonlocal asked
        if stop_file.exists():
            asked = "stopped"
        elif pruner is not None and pruner.falls_behind():
            asked = "pruned"
        return bool(asked)

    errors: deque[str] = deque(maxlen=_KEPT_LINES)
    command = train_command((), sweep.arguments(job))
    code = run_command(command, signals, stop=stop, last_errors=errors)
    record.seconds += time.time() - begun
    if code == FINISHED:
        _wait_for_the_run(run_dir, signals)  # the same run may have been started by hand in the meantime
    if code == FINISHED and _is_finished(run_dir):
        record.status = "finished"
    elif signals.received or code in (STOPPED, INTERRUPTED) or asked:
        record.status = "pruned" if asked == "pruned" and not signals.received else "stopped"
        record.message = pruner.reason if pruner and record.status == "pruned" else ""
    elif code == WRONG_USE:
        record.status, record.message = "refused", _sentence(errors) or "ended with code 2"
    else:
        what = f"died of {signal_name(-code)}" if code < 0 else f"ended with code {code}"
        record.status, record.message = "failed", ": ".join(part for part in (what, _sentence(errors)) if part)
    record.metric = judged(
        metric_values(run_dir, sweep.settings.metric), sweep.settings.value, sweep.settings.direction
    )
    write_job(run_dir, record)


def _sentence(lines: Sequence[str]) -> str:
    """Return the last message of a run: its own, else the last line."""
    own = [line.removeprefix("swinv2-train: ") for line in lines if line.startswith("swinv2-train: ")]
    return (own or [line.strip() for line in lines if line.strip()] or [""])[-1]


def _result(sweep: Sweep, record: JobRecord) -> str:
    """Return the outcome of a job, for one line."""
    value = f", {sweep.settings.metric} {record.metric:.6g}" if record.metric is not None else ""
    return f"{record.status}{value}" + (f" ({record.message})" if record.message else "")


def _stop_file(sweep: Sweep) -> Path:
    """Return the path of a file that stops every job of the sweep, wherever it runs."""
    return sweep.directory / STOP_FILE


def _is_further_task() -> bool:
    """Return whether this is a later task of a Slurm job, which is then one rank of the job's run."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return tasks.isdecimal() and int(tasks) > 1 and os.environ.get("SLURM_PROCID", "0") != "0"


def _follow(sweep: Sweep, job: Job) -> None:
    """Act as an additional rank of a job that the first task of the Slurm job supervises."""
    signals = StopSignals()
    try:
        for _ in range(1 + sweep.settings.retries):
            record = read_job(sweep.run_dir(job)) or new_record(job)
            if _is_done(sweep, job, record) or signals.received or _stop_file(sweep).exists():
                return
            code = run_command(train_command((), sweep.arguments(job)), signals)
            if code in (FINISHED, STOPPED, INTERRUPTED, WRONG_USE):
                return
    finally:
        signals.close()


def _requeue(received: Sequence[int]) -> None:
    """Forward to submitit what its own handlers would have received: it requeues the job, or not."""
    for number in received:
        if number in _REQUEUE and callable(signal.getsignal(number)):
            with contextlib.suppress(Exception):  # its log has the reason; the job is saved either way
                signal.raise_signal(number)


def shown_command(sweep: Sweep, job: Job) -> str:
    """Return the command of a job for a shell, as it would be run."""
    items = [item for item in sweep.arguments(job) if key_of(item) != "launch.dry_run"]
    return shlex.join(["swinv2-train", *items])
