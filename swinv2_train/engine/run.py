"""Put a run together: from a config to a `Trainer`, on every rank alike, and leave it in order."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swinv2_train.checkpoint.layout import read_manifest
from swinv2_train.checkpoint.load import check_parameters, load_fragments, load_state
from swinv2_train.checkpoint.retain import prune
from swinv2_train.checkpoint.save import save
from swinv2_train.checkpoint.verify import newest_valid
from swinv2_train.config.compose import flat, from_yaml, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config
from swinv2_train.data.augment import resolve_statistics
from swinv2_train.data.loader import EvalLoader, TrainLoader
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import start_server
from swinv2_train.engine.deepspeed import PRECISIONS, Engine
from swinv2_train.engine.identity import geometry, shards_digest
from swinv2_train.engine.lock import RunLock
from swinv2_train.engine.loop import Trainer
from swinv2_train.engine.ranks import Ranks, join, leave, pick_device
from swinv2_train.engine.signals import StopRequest
from swinv2_train.engine.state import TrainState
from swinv2_train.engine.status import write_status, write_text
from swinv2_train.errors import MainRankError
from swinv2_train.exit_codes import FINISHED, STOPPED
from swinv2_train.models.backbone import SwinTransformerV2
from swinv2_train.models.init import init_weights
from swinv2_train.tasks.simmim import SimMIM
from swinv2_train.tasks.task import Task
from swinv2_train.tracking.clock import StepClock
from swinv2_train.tracking.environment import append_environment
from swinv2_train.tracking.tracker import Tracker

logger = logging.getLogger("swinv2_train")
TASKS = {"simmim": SimMIM}
EVAL_SEED = 20111
"""Held-out samples get the same masks in every run, so that their losses can be compared."""


def open_shards(config: Config) -> tuple[ShardSet, ShardSet | None]:
    """The training shards and the held-out ones.

    Raises:
        DataError: if a path is missing or holds no samples.
    """
    read = partial(ShardSet.open, cache_dir=config.data.cache_dir, cache_gib=config.data.cache_gib)
    return read(config.data.shards), read(config.data.eval_shards) if config.data.eval_shards else None


def build_task(config: Config, shards: ShardSet) -> Task:
    """The task of a config, with the statistics of its data."""
    mean, std = resolve_statistics(config.data, shards.card, config.model.in_channels)
    return TASKS[config.task.name](config, mean, std)


def build_model(task: Task, config: Config, device: torch.device) -> nn.Module:
    """The model on the device in its training dtype, with seeded initial weights (the same on every rank)."""
    with torch.device("meta"):
        model = task.build_model()
    model = model.to(PRECISIONS[config.engine.precision]).to_empty(device=device)
    init_weights(model, torch.Generator().manual_seed(config.seed))
    if config.engine.compile:
        for module in model.modules():
            if isinstance(module, SwinTransformerV2):
                module.compile_blocks()
    return model


def resume(directory: Path, engine: Engine, ranks: Ranks) -> tuple[TrainState, list[str]]:
    """Load the newest valid checkpoint, if there is one: (state, lines for a person)."""
    found = newest_valid(directory / "checkpoints", ranks)
    lines = [f"passed over {line}" for line in found.passed_over]
    if found.path is None:
        left = "no valid checkpoint is left" if found.passed_over else "no checkpoint yet"
        return TrainState(), [*lines, f"{left}: starting from the beginning"]
    manifest = read_manifest(found.path)
    check_parameters(manifest, {name: _shape(value) for name, value in engine.module.named_parameters()})
    load_fragments(found.path, engine.fragments())
    saved = load_state(found.path)
    engine.load_scalars(saved["optimizer"])
    engine.publish()
    ranks_then = "" if manifest.world_size == ranks.world_size else f" (saved by {manifest.world_size} ranks)"
    lines.append(f"resuming from {found.path}{ranks_then}")
    return TrainState(**saved["train"]), lines


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def make_saver(
    directory: Path, config: Config, engine: Engine, state: TrainState, shards: str, ranks: Ranks, tracker: Tracker
) -> Callable[[], None]:
    """A function that writes a checkpoint of the present state and lets go of surplus ones."""

    def write() -> None:
        path = save(
            directory / "checkpoints",
            state.step,
            fragments=engine.fragments_to_save(ranks),
            state={"train": state.to_dict(), "optimizer": engine.scalars()},
            geometry=geometry(config, shards),
            ranks=ranks,
        )
        tracker.message(f"saved {path}")
        if ranks.is_main:
            keep = config.checkpoint
            try:
                prune(path.parent, keep_last=keep.keep_last, keep_every_steps=keep.keep_every_steps)
                write_status(directory, "running", state.step)
            except OSError as error:
                tracker.warn(f"cleaning up after the save failed: {error}")

    return write


def train(config: Config, stop: StopRequest) -> int:
    """Run a validated config on this rank to its end; returns the exit code (see `swinv2_train.exit_codes`).

    Raises:
        ConfigError, DataError, RunError, CheckpointError: on what ends the run, one sentence each.
    """
    if config.data.num_workers:
        start_server()  # imports what the workers need while this process builds the model
    alone = False
    try:
        ranks = join(pick_device(config.launch.device), config.engine.timeout_minutes)
        alone = ranks.world_size == 1
        code = _train(config, ranks, stop)
        # A rank that is gone makes launchers end the others, so nobody leaves before all are done.
        ranks.barrier()
        leave()
        return code
    except BaseException:
        # Among several ranks the others may sit in a collective; saying goodbye would wait for them.
        if alone:
            leave()
        raise


def _same_everywhere(config: Config, ranks: Ranks) -> None:
    texts = ranks.gather(to_yaml(config))
    for rank, text in enumerate(texts):
        if text != texts[0]:
            line = next(a for a, b in zip(text.splitlines(), texts[0].splitlines(), strict=False) if a != b)
            raise ConfigError("", line, f"rank {rank} was started with another config than rank 0: {line.strip()}")


def _on_main(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Do something on the main rank alone; what goes wrong there ends all ranks, instead of leaving them waiting."""
    result, failure = None, None
    if ranks.is_main:
        try:
            result = work()
        except (ConfigError, OSError) as error:
            failure = error
    message = ranks.broadcast(str(failure) if failure else None)
    if failure is not None:
        raise failure
    if message is not None:
        raise MainRankError(message)
    return result


def _train(config: Config, ranks: Ranks, stop: StopRequest) -> int:
    _same_everywhere(config, ranks)
    directory = Path(config.run.dir)

    def take_directory() -> RunLock:
        try:
            (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
            return RunLock(directory)
        except OSError as error:
            raise ConfigError("run.dir", directory, f"cannot be written to ({error.strerror})") from error

    lock = _on_main(ranks, take_directory)
    try:
        shards, held_out = open_shards(config)
        plan = make_plan(config, ranks.world_size, shards.num_samples)
        task = build_task(config, shards)
        engine = Engine(build_model(task, config, ranks.device), config, plan, ranks)
        try:
            code = _train_with(engine, task, config, plan, shards, held_out, ranks, stop)
        except BaseException:
            if ranks.world_size == 1:  # among several, the others may sit in a collective
                engine.close()
            raise
        engine.close()
        return code
    finally:
        if lock is not None:
            lock.release()


def _train_with(
    engine: Engine,
    task: Task,
    config: Config,
    plan: Plan,
    shards: ShardSet,
    held_out: ShardSet | None,
    ranks: Ranks,
    stop: StopRequest,
) -> int:
    directory = Path(config.run.dir)
    state, lines = resume(directory, engine, ranks)
    if state.step >= plan.total_steps:
        if ranks.is_main:
            print(f"the run in {directory} is finished: step {state.step} of {plan.total_steps}; nothing to do")
            write_status(directory, "finished", state.step)
        return FINISHED

    def describe_start() -> None:
        lines.extend(changed_since(directory / "resolved.yaml", config) if state.step else [])
        write_text(directory / "resolved.yaml", to_yaml(config))
        append_environment(directory, state.step)
        write_status(directory, "running", state.step)

    _on_main(ranks, describe_start)
    missed = ranks.broadcast(_missed(directory, config, state.step)) if state.step else set()
    status, trackers = "failed", []
    progress = {"total_steps": plan.total_steps, "start_step": state.step}
    try:
        # The main rank's tracker is the one that can fail; the others' does nothing.
        _on_main(ranks, lambda: trackers.append(Tracker(directory, config, is_main=True, **progress)))
        tracker = trackers[0] if trackers else Tracker(directory, config, is_main=False, **progress)
        warnings = _ToTracker(tracker)
        logger.addHandler(warnings)
        for line in [*lines, *start_lines(config, plan, state, ranks), *truncated_shards(shards)]:
            tracker.message(line)
        loader = train_loader(config, plan, task, shards, state, ranks)
        digest = shards_digest([shard.name for shard in shards.shards], shards.shard_sizes)
        try:
            trainer = Trainer(
                config=config,
                plan=plan,
                ranks=ranks,
                engine=engine,
                task=task,
                state=state,
                batches=iter(loader),
                held_out=evaluation_loader(config, task, held_out, ranks) if held_out else None,
                save=make_saver(directory, config, engine, state, digest, ranks, tracker),
                tracker=tracker,
                clock=StepClock(plan.global_batch),
                stop=stop,
                missed=missed,
            )
            code = trainer.run()
        except BaseException as error:
            tracker.warn(f"rank {ranks.rank} ended at step {state.step}: {error}")
            raise
        finally:
            loader.close()
        status = {FINISHED: "finished", STOPPED: "stopped"}[code]
        return code
    finally:
        for handler in [handler for handler in logger.handlers if isinstance(handler, _ToTracker)]:
            logger.removeHandler(handler)
        for open_tracker in trackers:
            open_tracker.close(status)
        if ranks.is_main:
            try:
                write_status(directory, status, state.step)
            except OSError as error:
                print(f"swinv2-train: status.json cannot be written: {error}", file=sys.stderr)


class _ToTracker(logging.Handler):
    """Brings warnings of the data code (a cut-off shard, a server that fails) into the run's log."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(logging.WARNING)
        self._tracker = tracker

    def emit(self, record: logging.LogRecord) -> None:
        self._tracker.warn(record.getMessage())


def _missed(directory: Path, config: Config, step: int) -> set[str]:
    """What was due at a step that a stop signal came before: `evaluate`, `draw`."""
    missed = set()
    if config.eval.every_steps and step % config.eval.every_steps == 0:
        try:
            lines = (directory / "metrics.jsonl").read_text().splitlines()
        except OSError:
            lines = []
        if not any(f'"step": {step},' in line and '"eval/' in line for line in lines):
            missed.add("evaluate")
    if config.eval.figure_every_steps and step % config.eval.figure_every_steps == 0:
        figures = (directory / "figures").glob(f"*-step-{step:08d}.png")
        if not any(figures):
            missed.add("draw")
    return missed


def changed_since(resolved: Path, config: Config) -> list[str]:
    """A line for every value of the config that is not what it was at the last start."""
    try:
        before = flat(from_yaml(resolved))
    except ConfigError:
        return []
    return [
        f"changed since the last start: {key} {before.get(key)} -> {value}"
        for key, value in flat(config).items()
        if before.get(key) != value and key != "run.dir"
    ]


def truncated_shards(shards: ShardSet) -> list[str]:
    """A line for every training shard that ends early."""
    return [
        f"{shard.name} is cut off ({shard.truncated}): its {shard.num_samples} complete samples are used"
        for shard in shards.shards
        if shard.truncated
    ]


def train_loader(
    config: Config, plan: Plan, task: Task, shards: ShardSet, state: TrainState, ranks: Ranks
) -> TrainLoader:
    """The training micro-batches of this rank from where the run stands."""
    workers = config.data.num_workers
    # A step fetches all its micro-batches before it begins, so the workers must have a whole one ready.
    prefetch = max(config.data.prefetch_batches, -(-plan.accumulation // max(1, workers)))
    return TrainLoader(
        shards,
        SampleOrder(shards.num_samples, config.seed, shuffle_samples=config.data.shuffle_samples),
        task.train_transform,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_step=state.step,
        channels=config.model.in_channels,
        seed=config.seed,
        num_workers=workers,
        prefetch_batches=prefetch,
    )


def evaluation_loader(
    config: Config, task: Task, shards: ShardSet, ranks: Ranks
) -> Callable[[int | None, int], EvalLoader]:
    """A function that opens this rank's share of the first n held-out samples (None: of all), in given batches."""

    def open_loader(num_samples: int | None, micro_batch: int) -> EvalLoader:
        count = min(num_samples or shards.num_samples, shards.num_samples)
        return EvalLoader(
            shards,
            task.eval_transform,
            num_samples=count,
            micro_batch=min(micro_batch, -(-count // ranks.world_size)),
            rank=ranks.rank,
            world_size=ranks.world_size,
            channels=config.model.in_channels,
            seed=EVAL_SEED,
            num_workers=config.data.num_workers,
            prefetch_batches=config.data.prefetch_batches,
        )

    return open_loader


def start_lines(config: Config, plan: Plan, state: TrainState, ranks: Ranks) -> list[str]:
    """What a person should know at the start: where the run is and what it does."""
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    batch = f"{plan.micro_batch} samples x {plan.accumulation} accumulation x {plan.world_size} ranks"
    rate = f"learning rate {plan.peak_lr:.4g} after {plan.warmup_steps} warm-up steps"
    return [
        f"{config.run.name} in {config.run.dir}: step {state.step} of {plan.total_steps}",
        f"global batch {plan.global_batch} = {batch}; {plan.num_samples} samples, {plan.epochs:.4g} epochs",
        f"{config.engine.precision} on {device}, ZeRO stage {config.engine.zero_stage}; {rate}",
    ]
