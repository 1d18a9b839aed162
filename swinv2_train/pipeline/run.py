"""Run a chain of stages: resume where it stopped, skip finished stages, and repeat only those that are requested."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from swinv2_train.checkpoint.consolidate import checked
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import KIND_OF, list_checkpoints
from swinv2_train.checkpoint.survey import Entry, ranked, survey
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.metrics import best_mode
from swinv2_train.errors import RunError
from swinv2_train.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED, WRONG_USE
from swinv2_train.launch.command import StopSignals, run_command, train_command
from swinv2_train.launch.lock import RunLock, check_free
from swinv2_train.launch.status import read_status
from swinv2_train.pipeline.plan import PlannedStage, by_name, differences
from swinv2_train.pipeline.report import chain_text, comparison_text, is_begun, is_finished, view, views
from swinv2_train.pipeline.spec import Pipeline
from swinv2_train.pipeline.state import FILE, Record, State, last_sign, now, read_state, settle_time, write_state
from swinv2_train.reading import UnreadableError, put_aside
from swinv2_train.shortage import remedied

_WAIT_SECONDS = 1.0
_MOST_SHOWN = 4

Say = Callable[[str], None]


@dataclass(frozen=True)
class Redo:
    """Stages to run again from scratch."""

    stages: Collection[str] = ()
    changed: bool = False
    """True to add stages whose recipe has changed, and those that started from weights that were replaced since."""


def dry_run(pipeline: Pipeline, planned: list[PlannedStage], say: Say) -> int:
    """Do a dry run of every stage; nothing is written. Return the exit code of the first that fails."""
    known = by_name(planned)
    for number, item in enumerate(planned, 1):
        say(f"== stage {number} of {len(planned)}: {item.name} ({item.stage.experiment}) ==")
        source = known[item.stage.source].run_dir if item.stage.source else None
        with _signals() as signals:
            code = run_command(train_command((), item.arguments(source)), signals)
        if code != FINISHED:
            return code if code > 0 else INTERRUPTED
    return FINISHED


def run_pipeline(pipeline: Pipeline, planned: list[PlannedStage], redo: Redo, say: Say) -> int:
    """Run every stage that is not finished, one after the other; return the exit code (`swinv2_train.exit_codes`).

    Raises:
        ConfigError: if the directory cannot be used, belongs to another pipeline, or is in use by another process.
        RunError: if a stage left no checkpoint for the next.
    """
    directory = pipeline.directory
    with _locked(directory), _signals() as signals:
        state = _begin(pipeline, planned, say)
        for number, item in enumerate(planned, 1):
            heading = f"stage {number} of {len(planned)}: {item.name} ({item.stage.experiment})"
            code = _run_stage(pipeline, item, heading, state, redo, signals, say)
            if code != FINISHED:
                return code
        shown = views(directory, state)
        say("")
        say(chain_text(shown))
        comparison = comparison_text(shown)
        if comparison:
            say("")
            say(comparison)
    return FINISHED


@contextmanager
def _signals() -> Iterator[StopSignals]:
    signals = StopSignals()
    try:
        yield signals
    finally:
        signals.close()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = RunLock(directory)
    except ConfigError as error:
        hint = "another swinv2-pipeline is using this directory; wait for it, stop it, or use another dir"
        raise ConfigError("dir", directory, hint) from error
    except OSError as error:
        raise ConfigError("dir", directory, f"cannot be written to ({remedied(error)})") from error
    try:
        yield
    finally:
        lock.release()


def _begin(pipeline: Pipeline, planned: list[PlannedStage], say: Say) -> State:
    """Return the state of earlier calls, with the stages of this one in their order."""
    before = _state_before(pipeline.directory, say)
    if before is not None and before.pipeline != pipeline.name:
        raise ConfigError(
            "dir", pipeline.directory, f"contains the pipeline {before.pipeline}, not {pipeline.name}; use another dir"
        )
    state = State(pipeline.name)
    for item in planned:
        record = before.stages.get(item.name) if before else None
        state.stages[item.name] = _record(item, record)
    write_state(pipeline.directory, state)
    return state


def _state_before(directory: Path, say: Say) -> State | None:
    """Return the state of earlier calls. A damaged file is renamed; the stages' own directories record what is done."""
    try:
        return read_state(directory)
    except UnreadableError as error:
        aside = put_aside(directory / FILE)
        say(
            f"{directory / FILE} is damaged ({error}); it is now {aside.name}. The recipes, sources, and times of "
            "earlier calls are lost; the stages' own directories record what is done"
        )
        return None


def _record(item: PlannedStage, before: Record | None) -> Record:
    """Return the record of a stage, with its display values updated to the current config."""
    record = before or Record(item.stage.experiment)
    settle_time(record, last_sign(item.run_dir))  # the pipeline was killed while the stage ran
    record.title, record.baseline_of = item.stage.title, item.stage.baseline_of
    record.metric = item.config.checkpoint.best_metric
    record.metric_mode = best_mode(item.config.checkpoint)
    record.total_steps = item.config.optim.steps
    return record


def _run_stage(
    pipeline: Pipeline,
    item: PlannedStage,
    heading: str,
    state: State,
    redo: Redo,
    signals: StopSignals,
    say: Say,
) -> int:
    if not _wait_for_the_run(item.run_dir, signals, say):
        return STOPPED
    changes = _changes(item, state)
    if is_begun(item.run_dir) and (item.name in redo.stages or (redo.changed and changes)):
        say(f"{item.name}: the run so far is kept in {_set_aside(item.run_dir)}")
        state.stages[item.name] = _record(item, None)
        write_state(pipeline.directory, state)
        changes = []
    record = state.stages[item.name]
    if is_finished(item.run_dir):
        _say_finished(item, record, changes, say)
        if not record.recipe:  # the state was removed, and the run is older than the new one
            record.recipe, record.begun = item.recipe(), record.begun or now()
        write_state(pipeline.directory, state)
        return FINISHED
    if signals.received:
        say(f"stopped before stage {item.name}; {_again(redo)}")
        return STOPPED
    begun = bool(list_checkpoints(item.run_dir / "checkpoints"))  # without one, the run starts from its weights again
    if begun and changes:
        say(f"{item.name}: resumes with these changes since it began: {_listed(changes)}")
    weights = Path(record.weights) if begun and record.weights else _weights(pipeline, item, state, say)
    say(f"== {heading}{f', from {weights}' if weights else ''} ==")
    code, accepted = _start(pipeline, item, state, weights, signals, begun=begun)
    refused = begun and not accepted and (changes or code == WRONG_USE)
    redo_hint = f"; --redo {item.name} reruns it with all changes" if refused else ""
    return _outcome(item, code, signals, _again(redo) + redo_hint, _again(redo), say)


def _start(
    pipeline: Pipeline, item: PlannedStage, state: State, weights: Path | None, signals: StopSignals, *, begun: bool
) -> tuple[int, bool]:
    """Run a stage to its end; return (exit code, whether it accepted its config). Keep its recipe only if it did."""
    before, config_before = state.stages[item.name], _last_config(item.run_dir)
    record = state.stages[item.name] = replace(before, recipe=item.recipe(), working_since=now())
    if not begun:
        record.begun, record.seconds, record.experiment = now(), 0.0, item.stage.experiment
        record.weights, record.source = str(weights) if weights else None, item.stage.source
        record.source_begun = state.stages[item.stage.source].begun if item.stage.source else None
    write_state(pipeline.directory, state)
    command = train_command(pipeline.launcher, item.arguments(weights))
    accepted = False
    try:
        code = run_command(command, signals)
        accepted = _last_config(item.run_dir) != config_before  # a launcher's exit code does not show this
    except OSError as error:
        raise ConfigError("launcher", command[0], f"cannot be started ({error.strerror})") from error
    finally:
        settle_time(record, now())
        if not accepted:
            state.stages[item.name] = before
        write_state(pipeline.directory, state)
    return code, accepted


def _last_config(run_dir: Path) -> tuple[int, int] | None:
    """Return an identifier of the last write of the run's config; a run writes it after accepting it, when it
    begins."""
    try:
        found = (run_dir / "resolved.yaml").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _wait_for_the_run(run_dir: Path, signals: StopSignals, say: Say) -> bool:
    """Wait until no process trains in a directory (a stage briefly outlives a killed pipeline); False on a signal."""
    said = False
    while run_dir.is_dir() and not signals.received:
        try:
            check_free(run_dir)
            break
        except ConfigError:
            if not said:
                say(f"{run_dir}: another process still trains there; waiting for its end")
                said = True
            time.sleep(_WAIT_SECONDS)
    return not signals.received


def _changes(item: PlannedStage, state: State) -> list[str]:
    """Return the changes since a stage was begun: its recipe, and the run that its weights came from."""
    record = state.stages[item.name]
    changes = differences(record.recipe, item.recipe())
    source = item.stage.source
    if source and record.source == source and record.source_begun != state.stages[source].begun:
        changes.append(f"{source} was rerun since")
    return changes


def _listed(changes: list[str]) -> str:
    more = f" and {len(changes) - _MOST_SHOWN} more" if len(changes) > _MOST_SHOWN else ""
    return "; ".join(changes[:_MOST_SHOWN]) + more


def _say_finished(item: PlannedStage, record: Record, changes: list[str], say: Say) -> None:
    seen = view(item.name, record, item.run_dir)
    metric = f", {seen.metric} {seen.last:.4g}" if seen.last is not None else ""
    say(f"{item.name}: finished at step {seen.step}{metric}")
    if changes:
        say(f"{item.name}: changed since it ran: {_listed(changes)}; it is kept; --redo {item.name} reruns it")


def _set_aside(run_dir: Path) -> Path:
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
        number += 1
    os.rename(run_dir, aside)
    return aside


def _weights(pipeline: Pipeline, item: PlannedStage, state: State, say: Say) -> Path | None:
    """Return the checkpoint that a stage starts from: the first in the requested order whose weights verify.

    Raises:
        RunError: if the source has none.
    """
    if item.stage.source is None:
        return None
    run_dir = pipeline.directory / item.stage.source
    entries = list(survey(run_dir)) if run_dir.is_dir() else []
    passed_over = False
    for entry in _candidates(item, entries, state.stages[item.stage.source], say):
        fault = entry.damage or _fault(entry.path, ema=item.stage.ema)
        if fault is None:
            if passed_over:
                say(f"{item.name}: starts from {entry.path.name} instead")
            return entry.path
        passed_over = True
        say(f"{item.stage.source}: skipped {entry.path.name}: {fault}")
    raise RunError(
        f"stage {item.name} starts from {item.stage.source}, but {run_dir} contains no complete checkpoint: "
        f"--redo {item.stage.source} creates one"
    )


def _candidates(item: PlannedStage, entries: list[Entry], source: Record, say: Say) -> list[Entry]:
    """Return the checkpoints of the source in the order in which a stage tries them."""
    if item.stage.weights != "best":
        return entries
    known = {entry.path: entry for entry in entries if entry.manifest}
    best = ranked([(path, entry.manifest) for path, entry in known.items()], source.metric, source.metric_mode)
    if not best:
        say(f"{item.stage.source}: no checkpoint has {source.metric}; using the newest")
    unknown = [entry for entry in entries if not entry.manifest]  # any of them may have been the best
    rest = [path for path in known if path not in best]
    return [*unknown, *(known[path] for path in (*best, *rest))]


def _fault(path: Path, *, ema: bool) -> str | None:
    """Return the damage of the weights, or their averages, in a checkpoint, by their hashes; None if intact."""
    try:
        manifest = checked(path, KIND_OF["ema" if ema else "weight"])
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    return "it contains no moving average of the weights" if ema and not manifest.has_ema else None


def _again(redo: Redo) -> str:
    return f"the same command{' without --redo' if redo.stages else ''} resumes it"


def _outcome(item: PlannedStage, code: int, signals: StopSignals, remedy: str, again: str, say: Say) -> int:
    """Return the exit code of a stage, and say how to continue: `remedy` after an error, else `again`."""
    if code == FINISHED:
        _wait_for_the_run(item.run_dir, signals, say)  # the same run may have been started by hand in the meantime
    status = read_status(item.run_dir)
    if status.get("status") == "finished" and code == FINISHED:
        return FINISHED
    if code == INTERRUPTED:
        say(f"{item.name}: interrupted; {again}")
        return INTERRUPTED
    if code == STOPPED or signals.received:  # a launcher may return a different code
        say(f"{item.name}: stopped at step {status.get('step', 0)}; {again}")
        return STOPPED
    if code == WRONG_USE:
        say(f"{item.name}: could not be run; fix the error above, and {remedy}")
        return WRONG_USE
    reason = f"died of signal {-code}" if code < 0 else f"ended with code {code}"
    say(f"{item.name}: {reason}; {remedy}")
    return FAILED
