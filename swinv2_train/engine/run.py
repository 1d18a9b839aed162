"""A run on one rank, from its config to its exit code; every rank does the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from swinv2_train.config.compose import to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config, WatchdogConfig
from swinv2_train.data.channel_statistics import check_held_out_channels
from swinv2_train.data.configured import OpenedSets, open_shards
from swinv2_train.data.jpeg_part import prepare as prepare_jpeg_parts
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import start_server
from swinv2_train.engine.assemble import Parts, Start, build_trainer, first_batch_seconds, start_warnings
from swinv2_train.engine.batch_change import change_lines, continued
from swinv2_train.engine.build import build_model
from swinv2_train.engine.checkpoints import load_newest
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.early_stopping import stopping_reason
from swinv2_train.engine.guard import mostly_skipped
from swinv2_train.engine.identity import run_identity
from swinv2_train.engine.init_from import start_from
from swinv2_train.engine.origin import copy_records, origin_of
from swinv2_train.engine.replay import replay
from swinv2_train.engine.room import (
    check_address_space,
    check_gpu_memory,
    check_shared_memory,
    checkpoint_size,
    shared_memory_needed,
)
from swinv2_train.engine.selection import selection
from swinv2_train.engine.start import (
    changed_since,
    damaged_records,
    finished_lines,
    missed_evaluation,
    rate_change,
    start_lines,
)
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.tracked import tracked
from swinv2_train.errors import MainRankError
from swinv2_train.exit_codes import FINISHED
from swinv2_train.launch import preflight
from swinv2_train.launch.failures import begun, on_main, together
from swinv2_train.launch.local_ranks import LAUNCH_KEYS, choose_ranks
from swinv2_train.launch.lock import RunLock
from swinv2_train.launch.ranks import Ranks, as_lost_rank, joined_ranks
from swinv2_train.launch.signals import KEEP_STOP_VARIABLE, STOP_FILE, StopRequest
from swinv2_train.launch.status import read_status, write_status, write_text
from swinv2_train.launch.watchdog import Watchdog
from swinv2_train.models.trainable import apply_freeze, trained_text
from swinv2_train.redact import redact
from swinv2_train.shortage import remedied, shortage
from swinv2_train.tasks.build import build_task
from swinv2_train.tasks.classes import check_classes, names_of_classes
from swinv2_train.tracking.environment import append_environment


@dataclass(frozen=True)
class Data:
    """Preparation of a run that depends on its data, which only the main rank opens."""

    opened: OpenedSets | None = None
    """Sets that this process has already opened, if it is the only rank; None: the main rank opens them."""
    complete: Callable[[ShardSet], None] | None = None
    """Called on every rank with the training shards, to complete the config; None: it is complete."""


def collective_minutes(limits: WatchdogConfig) -> float:
    """Return the timeout of collectives: longer than the watchdog's limits, because the watchdog reports more."""
    return 1.5 * max(limits.start_minutes, limits.step_minutes, limits.eval_minutes, limits.save_minutes)


def train(
    config: Config,
    stop: StopRequest,
    environment: Sequence[str] = (),
    problem: Exception | None = None,
    *,
    begins: bool = False,
    data: Data = Data(),
) -> int:
    """Run a validated config on this rank to its end and return the exit code (see `swinv2_train.exit_codes`).

    Args:
        environment: lines for the log about the environment that the ranks were started in.
        problem: an error that already occurred on this rank. The rank joins the others anyway, to report it to them.
        begins: True if no command of this package has prepared the run directory for this start.
        data: part of the preparation that depends on the data.

    Raises:
        ConfigError, DataError, RunError, CheckpointError: any error that ends the run, with a one-sentence message.
    """
    check_address_space()
    clips, preparing = bool(config.data.frames), not (problem or config.launch.preflight_only)
    if config.data.crop_decoding and not clips and preparing:
        prepare_jpeg_parts()  # data workers load what it compiles
    if config.data.num_workers and preparing:
        # It imports the workers' modules while this process builds the model.
        start_server([*config.task.worker_modules(), *(["av"] if clips else [])])
    device, _ = choose_ranks(config.launch.device, 1, LAUNCH_KEYS)
    with joined_ranks(device, collective_minutes(config.watchdog), config.watchdog.start_minutes) as ranks:
        return _train(config, ranks, stop, environment, problem, begins=begins, data=data)


def _train(
    config: Config,
    ranks: Ranks,
    stop: StopRequest,
    environment: Sequence[str],
    problem: Exception | None,
    *,
    begins: bool,
    data: Data,
) -> int:
    directory = Path(config.run.dir)
    only = config.launch.preflight_only
    with ExitStack() as stack:
        lock = on_main(ranks, lambda: None if only else _take_directory(directory, begins=begins))
        if lock is not None:
            stack.callback(lock.release)
            stop.watch(directory / STOP_FILE)
        watchdog = stack.enter_context(Watchdog(config.watchdog, directory, ranks))
        opened, everyone = preflight.compare(
            config,
            ranks,
            problem,
            lambda: data.opened or open_shards(config.data, task=config.task),
        )
        shards, held_out = opened
        together(ranks, lambda: _complete(config, data, opened))
        plan = make_plan(config, ranks.world_size, shards.num_samples)
        task = build_task(config, shards)
        parts = Parts(config, plan, ranks, task, shards, held_out, run_identity(config, shards), stop, watchdog)
        needed = shared_memory_needed(config, plan, task, shards.card, held_out)
        together(ranks, lambda: check_shared_memory(config, needed, [(one.host, one.shared_free) for one in everyone]))
        gpus = [(one.device, one.memory[1] if one.memory else None) for one in everyone]
        tight = together(ranks, lambda: check_gpu_memory(config, plan, gpus, selection(config).frozen))
        lines = [*environment, *(f"warning: {line}" for line in tight)]
        if ranks.world_size > 1 or only:
            lines = [*_preflight_lines(parts, everyone), *lines]
        if only:
            if ranks.is_main:
                print("\n".join(f"preflight      {line}" for line in lines), flush=True)
            return FINISHED
        engine = Engine(build_model(task, config, ranks.device), config, plan, ranks)
        stack.push(_closing(engine, ranks))
        return _train_from(*_resume_or_begin(parts, engine), engine, lines)


def _complete(config: Config, data: Data, opened: OpenedSets) -> None:
    """Fill in what the config leaves to the data, and reject data whose classes are not those of the task."""
    shards, held_out = opened
    if data.complete is not None:
        data.complete(shards)
    held_out_card = held_out.card if held_out else None
    check_held_out_channels(config, held_out_card)
    if config.task.classes is not None:
        check_classes(config.task.classes, shards.card, held_out_card)


def _take_directory(directory: Path, *, begins: bool) -> RunLock:
    """Lock the run directory. Only after that, read or remove what an earlier start left there."""
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


def _preflight_lines(parts: Parts, everyone: list[preflight.Facts]) -> list[str]:
    with torch.device("meta"):
        model = parts.task.build_model()
    apply_freeze(model, parts.config.optim.freeze)
    num_shards = sum(len(part.shards) for part in (parts.shards, parts.held_out) if part)
    measured = preflight.measure(parts.ranks, partial(first_batch_seconds, parts))
    return [*preflight.report(everyone, num_shards, checkpoint_size(parts.config, model)), *measured]


def _closing(engine: Engine, ranks: Ranks) -> Callable[..., bool]:
    def close(kind: type[BaseException] | None, *_: object) -> bool:
        if kind is None or ranks.world_size == 1:  # otherwise the other ranks may be in a collective
            engine.close()
        return False

    return close


def _resume_or_begin(parts: Parts, engine: Engine) -> tuple[Start, Parts]:
    """Load the checkpoint that the run resumes from, or the weights that it starts from. A collective.

    Returns:
        (the start, the parts with the plan from its step).

    Raises:
        ConfigError, CheckpointError, DataError, RunError: if there is nothing to start from.
    """
    config, ranks, directory = parts.config, parts.ranks, Path(parts.config.run.dir)
    place = ranks.broadcast(origin_of(config))
    found = load_newest(place.checkpoints, engine, ranks, place.step, parts.identity)
    state, lines = found.state or TrainState(), found.lines
    if place.step is not None and state.step != place.step:
        raise ranks.end(f"resume={config.resume.mode}: that checkpoint cannot be used ({'; '.join(lines)})")
    if found.damaged and found.state is None:
        raise ranks.end(
            f"none of the checkpoints in {place.checkpoints} is valid ({'; '.join(lines)}): "
            "remove them to start from the beginning, or use another run.dir"
        )
    if found.state is None and not config.replay:  # a replay chooses its own
        lines.append("no checkpoint yet: starting from " + (config.init_from or "the beginning"))
        if config.init_from:
            lines.extend(start_from(config, engine, ranks, names_of_classes(config, parts.shards.card)))
    elif config.init_from and not config.replay:
        whose = f"one of {place.run_dir}" if place.branches else "its own checkpoint"
        lines.append(f"init_from={config.init_from} applies only to a new run; this one resumes from {whose}")
    if config.resume.source and not place.branches and not config.replay:
        lines.append(f"resume.source={config.resume.source} applied to the first start of this run")
    elif config.resume.step is not None and place.step is None and not config.replay:
        lines.append(f"resume={config.resume.mode} applied to an earlier start of this run")
    plan = continued(parts.plan, config.optim, state)
    warnings = []
    if found.batch_before is not None:
        warnings = change_lines(config, parts.plan, plan, found.batch_before, state)
    damaged = [] if place.branches else found.damaged
    start = Start(state, lines, set(), damaged, found.metadata, found.metrics, warnings=warnings)
    start.new_place = found.state is not None and (place.branches or found.batch_before is not None)
    total = plan.total_steps
    if state.step > total:
        key = "optim.epochs" if config.optim.steps is None else "optim.steps"
        hint = (
            f"ends the run at step {total}, but the one in {directory} is already at step {state.step}; set it back, "
            "or use another run.dir"
        )
        raise ConfigError(key, config.optim.epochs if config.optim.steps is None else config.optim.steps, hint)
    if place.branches and found.state is not None:
        start.source = place.run_dir
        start.lines.extend(on_main(ranks, lambda: copy_records(place, directory)) or [])
    if state.step:
        last = state.step == total or bool(stopping_reason(state, config.eval.early_stopping))
        start.missed = ranks.broadcast(missed_evaluation(directory, config, state.step, last=last))
    return start, replace(parts, plan=plan)


def _train_from(start: Start, parts: Parts, engine: Engine, preflight_lines: list[str]) -> int:
    config, plan, ranks, state = parts.config, parts.plan, parts.ranks, start.state
    directory = Path(config.run.dir)
    early = stopping_reason(state, config.eval.early_stopping)
    if (state.step == plan.total_steps or early) and not start.missed and not start.new_place:
        if failure := mostly_skipped(state):
            raise ranks.end(failure)
        if ranks.is_main:
            ended = early if state.step < plan.total_steps else None
            print(redact("\n".join(finished_lines(config, plan, state.step, ended))))
            write_status(directory, "finished", state.step)
        return FINISHED

    def describe_start() -> list[str]:
        lines = []
        if state.step:
            resolved = (start.source or directory) / "resolved.yaml"
            lines += changed_since(resolved, config, start.source)
            lines += rate_change(resolved, config, plan, state)
        lines += damaged_records(directory)
        write_text(directory / "resolved.yaml", redact(to_yaml(config)))
        append_environment(directory, state.step)
        write_status(directory, "running", state.step)
        return lines

    start.lines.extend(on_main(ranks, describe_start) or [])
    with tracked(config, plan, state, ranks) as (tracker, end):
        for line in preflight_lines:
            tracker.message(f"preflight: {line}")
        training = trained_text(engine.module, config.optim.freeze, config.optim.lr_scales)
        for line in [*start.lines, *start_lines(config, plan, state, ranks), *training]:
            tracker.message(line)
        for line in start_warnings(parts, start, engine) if ranks.is_main else ():
            tracker.warn(line)
        trainer = build_trainer(parts, start, engine, tracker)
        end.state = lambda: trainer.state
        try:
            with begun():
                end.code = replay(trainer) if config.replay else trainer.run()
        except BaseException as error:
            if not isinstance(error, MainRankError):
                reason = as_lost_rank(error) or shortage(error) or error
                tracker.warn(f"rank {ranks.rank} ended at step {trainer.state.step}: {reason}")
            raise
        finally:
            trainer.checkpoints.saver.close()
    return end.code
