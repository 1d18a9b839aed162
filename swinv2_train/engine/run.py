"""Put a run together: from a config to a `Trainer`, on every rank alike, and leave it in order."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.identity import CONTENT, SHARDS, Identity, geometry
from swinv2_train.checkpoint.saver import Saver
from swinv2_train.config.compose import to_yaml
from swinv2_train.config.doubts import doubts
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config, WatchdogConfig
from swinv2_train.config.tasks import ClassificationConfig
from swinv2_train.data.augment import resolve_statistics
from swinv2_train.data.overlap import overlap_warning
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import start_server
from swinv2_train.engine import preflight
from swinv2_train.engine.agree import begun, on_main, together
from swinv2_train.engine.build import (
    build_model,
    build_task,
    evaluation_loader,
    open_shards,
    sample_order,
    train_loader,
    worker_modules,
)
from swinv2_train.engine.checkpoints import Checkpoints, load_newest
from swinv2_train.engine.classes import names_of_classes, unnamed_classes
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.evaluation import Evaluation, check_stop
from swinv2_train.engine.guard import mostly_skipped
from swinv2_train.engine.identity import class_warnings, run_identity
from swinv2_train.engine.incidents import IncidentLog, protector
from swinv2_train.engine.init_from import start_from
from swinv2_train.engine.local_ranks import LAUNCH_KEYS, choose_ranks
from swinv2_train.engine.lock import RunLock, check_in_place
from swinv2_train.engine.loop import Trainer
from swinv2_train.engine.probes import Probe
from swinv2_train.engine.ranks import Ranks, as_lost_rank, join, leave
from swinv2_train.engine.replay import replay
from swinv2_train.engine.room import (
    check_address_space,
    check_shared_memory,
    checkpoint_size,
    disk_warning,
    shared_memory_needed,
)
from swinv2_train.engine.signals import KEEP_STOP_VARIABLE, STOP_FILE, StopRequest
from swinv2_train.engine.start import (
    background_warnings,
    changed_since,
    damaged_records,
    missed_evaluation,
    start_lines,
)
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.status import read_status, write_status, write_text
from swinv2_train.engine.surroundings import Surroundings
from swinv2_train.engine.watchdog import Watchdog
from swinv2_train.errors import MainRankError
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied, shortage
from swinv2_train.tasks.task import Task
from swinv2_train.tracking.clock import StepClock
from swinv2_train.tracking.environment import append_environment
from swinv2_train.tracking.tracker import Tracker

logger = logging.getLogger("swinv2_train")


def collective_minutes(limits: WatchdogConfig) -> float:
    """The timeout of collectives: long enough for the watchdog, which says more, to come first."""
    return 1.5 * max(limits.start_minutes, limits.step_minutes, limits.eval_minutes, limits.save_minutes)


def train(
    config: Config,
    stop: StopRequest,
    surroundings: Surroundings | None = None,
    problem: Exception | None = None,
    *,
    begins: bool = False,
) -> int:
    """Run a validated config on this rank to its end; returns the exit code (see `swinv2_train.exit_codes`).

    Args:
        surroundings: what the launcher and the environment gave.
        problem: what went wrong on this rank already. It joins the others all the same, to tell them.
        begins: no command of this package has prepared the run directory for this start.

    Raises:
        ConfigError, DataError, RunError, CheckpointError: on what ends the run, one sentence each.
    """
    check_address_space()
    if config.data.num_workers and not (problem or config.launch.preflight_only):
        start_server(worker_modules(config))  # imports what the workers need while this process builds the model
    alone = False
    try:
        device, _ = choose_ranks(config.launch.device, 1, LAUNCH_KEYS)
        ranks = join(device, collective_minutes(config.watchdog), config.watchdog.start_minutes)
        alone = ranks.world_size == 1
        code = _train(config, ranks, stop, surroundings, problem, begins=begins)
        # A rank that is gone makes launchers end the others, so nobody leaves before all are done.
        ranks.barrier()
        leave()
        return code
    except BaseException as error:
        # Among several ranks the others may sit in a collective; saying goodbye would wait for them.
        if alone:
            leave()
        lost = as_lost_rank(error)
        if lost is not None and lost is not error:
            raise lost from error
        raise


def _train(
    config: Config,
    ranks: Ranks,
    stop: StopRequest,
    surroundings: Surroundings | None,
    problem: Exception | None,
    *,
    begins: bool,
) -> int:
    directory = Path(config.run.dir)
    only = config.launch.preflight_only
    with ExitStack() as stack:
        lock = on_main(ranks, lambda: None if only else _take_directory(directory, begins=begins))
        if lock is not None:
            stack.callback(lock.release)
            stop.watch(directory / STOP_FILE)
        trainers: list[Trainer] = []
        watchdog = Watchdog(
            config.watchdog, directory, ranks, where=lambda: trainers[0].doing if trainers else "starting"
        )
        stack.enter_context(watchdog)
        watchdog.now("start", 0)
        (shards, held_out), everyone = preflight.compare(config, ranks, problem, lambda: open_shards(config))
        plan = make_plan(config, ranks.world_size, shards.num_samples)
        task = build_task(config, shards)
        needed = shared_memory_needed(config, plan, task, shards.card, held_out)
        together(ranks, lambda: check_shared_memory(config, needed, [(one.host, one.shared_free) for one in everyone]))
        lines = surroundings.lines if surroundings else []
        if ranks.world_size > 1 or only:
            parts = [part for part in (shards, held_out) if part]
            read = partial(preflight.first_batch, config, plan, task, shards, ranks)
            lines = [*preflight.report(everyone, parts, task), *preflight.measure(ranks, read), *lines]
        if only:
            if ranks.is_main:
                print("\n".join(f"preflight      {line}" for line in lines), flush=True)
            return FINISHED
        engine = Engine(build_model(task, config, ranks.device), config, plan, ranks)
        stack.push(_closing(engine, ranks))
        return _train_with(engine, task, config, plan, shards, held_out, ranks, stop, watchdog, trainers, lines)


def _take_directory(directory: Path, *, begins: bool) -> RunLock:
    """Lock the run directory; only then is what an earlier start left there read or removed."""
    try:
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = RunLock(directory)
        if begins and KEEP_STOP_VARIABLE not in os.environ:
            (directory / STOP_FILE).unlink(missing_ok=True)
        if begins and read_status(directory).get("status") == "stopped":
            write_status(directory, "starting", read_status(directory).get("step", 0))
        return lock
    except OSError as error:
        raise ConfigError("run.dir", directory, f"cannot be written to ({remedied(error)})") from error


def _closing(engine: Engine, ranks: Ranks) -> Callable[..., bool]:
    def close(kind: type[BaseException] | None, *_: object) -> bool:
        if kind is None or ranks.world_size == 1:  # among several, the others may sit in a collective
            engine.close()
        return False

    return close


def _train_with(
    engine: Engine,
    task: Task,
    config: Config,
    plan: Plan,
    shards: ShardSet,
    held_out: ShardSet | None,
    ranks: Ranks,
    stop: StopRequest,
    watchdog: Watchdog,
    trainers: list[Trainer],
    preflight_lines: list[str],
) -> int:
    directory = Path(config.run.dir)
    own = run_identity(config, shards)
    found = load_newest(directory / "checkpoints", engine, ranks, own=own)
    state, lines = found.state or TrainState(), found.lines
    if found.damaged and found.state is None:
        raise ranks.end(
            f"none of the checkpoints in {directory / 'checkpoints'} is valid ({'; '.join(lines)}): "
            "remove them to start from the beginning, or take another run.dir"
        )
    if found.state is None and not config.replay:  # a replay finds its own
        lines.append("no checkpoint yet: starting from " + (config.init_from or "the beginning"))
        if config.init_from:
            lines.extend(start_from(config, engine, ranks, names_of_classes(config, shards.card)))
    elif config.init_from and not config.replay:
        lines.append(
            f"init_from={config.init_from} is for the start of a run; this one goes on from its own checkpoint"
        )
    if state.step > plan.total_steps:
        raise ranks.end(
            f"the run in {directory} is at step {state.step} already, and the config ends it at {plan.total_steps}: "
            "set optim.steps or optim.epochs back, or take another run.dir"
        )
    last = state.step == plan.total_steps
    missed = ranks.broadcast(missed_evaluation(directory, config, state.step, last=last)) if state.step else set()
    if last and not missed:
        if failure := mostly_skipped(state):
            raise ranks.end(failure)
        if ranks.is_main:
            print(f"the run in {directory} is finished: step {state.step} of {plan.total_steps}; nothing to do")
            write_status(directory, "finished", state.step)
        return FINISHED

    def describe_start() -> None:
        lines.extend(changed_since(directory / "resolved.yaml", config) if state.step else [])
        lines.extend(damaged_records(directory))
        write_text(directory / "resolved.yaml", redact(to_yaml(config)))
        append_environment(directory, state.step)
        write_status(directory, "running", state.step)

    on_main(ranks, describe_start)
    with _tracking(config, plan, state, ranks) as (tracker, end):
        for line in preflight_lines:
            tracker.message(f"preflight: {line}")
        for line in [*lines, *start_lines(config, plan, state, ranks)]:
            tracker.message(line)
        size = checkpoint_size(engine.module, config.optim.ema_decay)
        short = disk_warning(config, plan.total_steps - state.step, size, directory / "checkpoints")
        warnings = [
            *doubts(config, plan),
            *class_warnings(found.geometry, own),
            *_data_warnings(config, shards, held_out),
        ]
        for line in [*warnings, *([short] if short else [])] if ranks.is_main else ():
            tracker.warn(line)
        saver = Saver(
            directory / "checkpoints",
            ranks.another(),
            config.checkpoint,
            watch=lambda: watchdog.background("save"),
            protected=protector(directory),
            damaged=found.damaged,
            check=lambda: check_in_place(directory),
        )
        order = sample_order(config, shards)
        trainer = Trainer(
            config=config,
            plan=plan,
            ranks=ranks,
            engine=engine,
            task=task,
            state=state,
            open_batches=lambda state: train_loader(config, plan, task, shards, state, ranks),
            evaluation=Evaluation(
                config=config,
                plan=plan,
                ranks=ranks,
                engine=engine,
                task=task,
                open_held_out=evaluation_loader(config, task, held_out, ranks) if held_out else None,
                tracker=tracker,
                watchdog=watchdog,
                stop=stop,
                probe=_probe(config, plan, task, ranks, tracker, stop),
            ),
            checkpoints=Checkpoints(
                directory, engine, ranks, _geometry(config, shards, own, found.geometry), own, tracker, saver
            ),
            incidents=IncidentLog(directory, config, plan, ranks, lambda position: shards.name(order.at(position)[1])),
            tracker=tracker,
            clock=StepClock(plan.global_batch),
            watchdog=watchdog,
            stop=stop,
            missed=missed,
        )
        end.trainer = trainer
        trainers.append(trainer)
        try:
            with begun():
                end.code = replay(trainer) if config.replay else trainer.run()
        except BaseException as error:
            if not isinstance(error, MainRankError):
                reason = as_lost_rank(error) or shortage(error) or error
                tracker.warn(f"rank {ranks.rank} ended at step {trainer.state.step}: {reason}")
            raise
        finally:
            saver.close()
    return end.code


def _probe(config: Config, plan: Plan, task: Task, ranks: Ranks, tracker: Tracker, stop: StopRequest) -> Probe | None:
    if not config.probe.shards:
        return None
    return Probe(
        config,
        ranks,
        mean=task.mean,
        std=task.std,
        micro_batch=plan.micro_batch,
        warn=tracker.warn,
        check=lambda: check_stop(ranks, stop),
    )


def _data_warnings(config: Config, shards: ShardSet, held_out: ShardSet | None) -> list[str]:
    """Return a line for everything about the data that is probably not intended."""
    lines = [*shards.warnings(), *background_warnings(config.data, shards.card)]
    if held_out is not None and isinstance(config.task, ClassificationConfig):
        lines += unnamed_classes({"data.shards": shards.card, "data.eval_shards": held_out.card})
    if held_out is not None:
        lines += overlap_warning("data.eval_shards", held_out, "data.shards", shards)
    return lines


def _geometry(config: Config, shards: ShardSet, own: Identity, before: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the checkpoints of this run record of it.

    Args:
        before: the geometry of the checkpoint that the run continues from.
    """
    # Data without names do not take those of the run away.
    names = list(own.class_names) if own.class_names else (before or {}).get("classes")
    if not isinstance(config.task, ClassificationConfig) or len(names or ()) != config.task.num_classes:
        names = None
    order = own.geometry["order"]
    statistics = resolve_statistics(config.data, shards.card, config.model.in_channels)
    bits = sorted(shards.card.bits) if shards.card else None
    return geometry(config, order[SHARDS], names, statistics, order[CONTENT], bits or None)


@dataclass
class _End:
    """What is known of a run when it ends, however that happens."""

    trainer: Trainer | None = None
    code: int | None = None


@contextmanager
def _tracking(config: Config, plan: Plan, state: TrainState, ranks: Ranks) -> Iterator[tuple[Tracker, _End]]:
    """The tracker of a run, closed with the run's status, which status.json gets as well."""
    directory = Path(config.run.dir)
    progress = {"total_steps": plan.total_steps, "start_step": state.step}
    trackers: list[Tracker] = []
    end = _End()
    handler: logging.Handler | None = None
    try:
        # The main rank's tracker is the one that can fail; the others' does nothing.
        on_main(ranks, lambda: trackers.append(Tracker(directory, config, is_main=True, **progress)))
        tracker = trackers[0] if trackers else Tracker(directory, config, is_main=False, **progress)
        handler = _ToTracker(tracker)
        logger.addHandler(handler)
        yield tracker, end
    finally:
        if handler is not None:
            logger.removeHandler(handler)
        status = {FINISHED: "finished", STOPPED: "stopped"}.get(end.code, "failed")
        for tracker in trackers:
            tracker.close(status)
        if ranks.is_main:
            try:
                write_status(directory, status, end.trainer.state.step if end.trainer else state.step)
            except OSError as error:
                print(f"swinv2-train: status.json cannot be written: {error}", file=sys.stderr)


class _ToTracker(logging.Handler):
    """Brings warnings of the data code (a cut-off shard, a server that fails) into the run's log."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(logging.WARNING)
        self._tracker = tracker

    def emit(self, record: logging.LogRecord) -> None:
        self._tracker.warn(record.getMessage())
