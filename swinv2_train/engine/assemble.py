"""Assemble the trainer of a run from its parts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swinv2_train.analysis.features import with_fixed_crop
from swinv2_train.analysis.probes import Probe
from swinv2_train.checkpoint.identity import CONTENT, EARLIER, SHARDS, Identity, earlier_batches, run_metadata
from swinv2_train.checkpoint.saver import Saver
from swinv2_train.config.doubts import doubts
from swinv2_train.config.plan import Plan
from swinv2_train.config.resume import GLOBAL_BATCH
from swinv2_train.config.schema import Config
from swinv2_train.data.channel_statistics import resolve_statistics
from swinv2_train.data.overlap import overlap_warning
from swinv2_train.data.shards import ShardSet
from swinv2_train.engine.build import sample_order, train_loader
from swinv2_train.engine.checkpoints import Checkpoints
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.evaluation import Evaluation, check_stop
from swinv2_train.engine.identity import class_warnings
from swinv2_train.engine.incidents import IncidentLog, protector
from swinv2_train.engine.loop import Trainer
from swinv2_train.engine.phase import Phases
from swinv2_train.engine.recovery import Recovery
from swinv2_train.engine.room import checkpoint_size, disk_warning
from swinv2_train.engine.start import background_warnings, value_warnings
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.utilization import seconds_at_peak
from swinv2_train.launch.lock import check_in_place
from swinv2_train.launch.ranks import Ranks
from swinv2_train.launch.signals import StopRequest
from swinv2_train.launch.watchdog import Watchdog
from swinv2_train.tasks.build import evaluation_loader
from swinv2_train.tasks.classes import other_ids, unnamed_classes, unused_classes
from swinv2_train.tasks.task import Task
from swinv2_train.tracking.clock import StepClock
from swinv2_train.tracking.tracker import Tracker


@dataclass(frozen=True)
class Parts:
    """Parts of a run before its model exists, on one rank."""

    config: Config
    plan: Plan
    ranks: Ranks
    task: Task
    shards: ShardSet
    held_out: ShardSet | None
    identity: Identity
    """Identity that a checkpoint must match to be resumed from."""
    stop: StopRequest
    watchdog: Watchdog


@dataclass
class Start:
    """Where a run starts."""

    state: TrainState
    lines: list[str]
    """Reasons for this start, for the log."""
    missed: set[str]
    """Evaluations that were due at this step when the run ended there (see `engine.evaluation.due`)."""
    damaged: list[str]
    """Names of the checkpoints that were skipped."""
    metadata: dict[str, Any] | None
    """Metadata of the checkpoint that was loaded; None without one."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Evaluation at its step."""
    new_place: bool = False
    """True if the run continues from a checkpoint of another directory or with another global batch, so that no
    checkpoint of the run has this state."""
    source: Path | None = None
    """Directory of the other run that this one continues; None if it continues none."""
    warnings: list[str] = field(default_factory=list)
    """Lines about this, for the log."""


def first_batch_seconds(parts: Parts) -> float:
    """Return the time in seconds that this rank needs to read and decode one micro-batch, without workers.

    Raises:
        DataError: if it cannot.
    """
    config = replace(parts.config, data=replace(parts.config.data, num_workers=0))
    begun = time.perf_counter()
    loader = train_loader(config, parts.plan, parts.task, parts.shards, TrainState(), parts.ranks)
    try:
        next(loader)
    finally:
        loader.close()
    return time.perf_counter() - begun


def start_warnings(parts: Parts, start: Start, engine: Engine) -> list[str]:
    """Return warnings about settings and data that were probably not intended. Only the main rank calls it."""
    config, shards, held_out = parts.config, parts.shards, parts.held_out
    lines = [*start.warnings, *doubts(config, parts.plan), *shards.warnings()]
    lines += background_warnings(config.data, shards.card) + value_warnings(config.data, shards.card)
    lines += parts.task.warnings(shards.card)
    if config.task.classes is not None:
        lines += unused_classes(config.task.classes, shards.card) + class_warnings(start.metadata, parts.identity)
    if held_out is not None:
        if config.task.classes is not None:
            cards = {"data.shards": shards.card, "data.eval_shards": held_out.card}
            lines += unnamed_classes(cards) + other_ids(cards)
        lines += overlap_warning("data.eval_shards", held_out, "data.shards", shards)
    size = checkpoint_size(config, engine.module)
    steps_left = parts.plan.total_steps - start.state.step
    short = disk_warning(config, steps_left, size, Path(config.run.dir) / "checkpoints")
    return [*lines, short] if short else lines


def build_trainer(parts: Parts, start: Start, engine: Engine, tracker: Tracker) -> Trainer:
    """Return the trainer of a run. A collective."""
    config, plan, ranks, task = parts.config, parts.plan, parts.ranks, parts.task
    directory = Path(config.run.dir)
    saver = Saver(
        directory / "checkpoints",
        ranks.another(),
        config.checkpoint,
        watch=lambda: parts.watchdog.background("save"),
        protected=protector(directory),
        damaged=start.damaged,
        check=lambda: check_in_place(directory),
    )
    metadata = _metadata(parts, start.metadata)
    checkpoints = Checkpoints(directory, engine, ranks, metadata, parts.identity, tracker, saver)
    order = sample_order(config, parts.shards)
    incidents = IncidentLog(directory, config, plan, ranks, lambda position: parts.shards.name(order.at(position)[1]))
    clock = StepClock(plan.global_batch)
    phase = Phases(parts.watchdog, clock)
    return Trainer(
        config=config,
        plan=plan,
        ranks=ranks,
        engine=engine,
        task=task,
        state=start.state,
        open_batches=lambda state: train_loader(config, plan, task, parts.shards, state, ranks),
        evaluation=_evaluation(parts, engine, tracker),
        checkpoints=checkpoints,
        recovery=Recovery(config, ranks, engine, checkpoints, incidents, tracker, phase),
        tracker=tracker,
        clock=clock,
        phase=phase,
        stop=parts.stop,
        seconds_at_peak=seconds_at_peak(config, ranks),
        missed=start.missed,
        metrics=dict(start.metrics) if start.new_place else {},
        save_first=start.new_place,
    )


def _evaluation(parts: Parts, engine: Engine, tracker: Tracker) -> Evaluation:
    config, ranks, held_out = parts.config, parts.ranks, parts.held_out
    return Evaluation(
        config=config,
        plan=parts.plan,
        ranks=ranks,
        engine=engine,
        task=parts.task,
        open_held_out=evaluation_loader(config, parts.task, held_out, ranks) if held_out else None,
        tracker=tracker,
        watchdog=parts.watchdog,
        stop=parts.stop,
        probe=_probe(parts, tracker),
    )


def _probe(parts: Parts, tracker: Tracker) -> Probe | None:
    if not parts.config.probe.shards:
        return None
    return Probe(
        with_fixed_crop(parts.config),
        parts.ranks,
        mean=parts.task.mean,
        std=parts.task.std,
        micro_batch=parts.plan.micro_batch,
        warn=tracker.warn,
        check=lambda: check_stop(parts.ranks, parts.stop),
    )


def _metadata(parts: Parts, before: dict[str, Any] | None) -> dict[str, Any]:
    """Return the metadata that the checkpoints of this run record.

    Args:
        before: metadata of the checkpoint that the run resumes from.
    """
    config, shards, own = parts.config, parts.shards, parts.identity
    # If the data has no class names, keep those that the run already has.
    names = list(own.class_names) if own.class_names else (before or {}).get("classes")
    if len(names or ()) != config.task.classes:
        names = None
    order = own.metadata["order"]
    statistics = resolve_statistics(config.data, shards.card, config.model.in_channels)
    bits = sorted(shards.card.bits) if shards.card else None
    metadata = run_metadata(config, order[SHARDS], names, statistics, order[CONTENT], bits or None)
    if before is not None:
        batches = [*earlier_batches(before), before.get("order", {}).get(GLOBAL_BATCH)]
        if changed := [batch for batch in dict.fromkeys(batches) if batch not in (None, config.optim.global_batch)]:
            metadata[EARLIER] = {GLOBAL_BATCH: changed}
    return metadata
