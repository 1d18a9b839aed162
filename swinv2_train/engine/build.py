"""Build the parts of a run from its config: shards, task, model, loaders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import ClassificationConfig
from swinv2_train.data.augment import resolve_statistics
from swinv2_train.data.auto_augment import POLICY_MODULE
from swinv2_train.data.card import Card
from swinv2_train.data.errors import DataError
from swinv2_train.data.loader import EvalLoader, TrainLoader
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.shards import ShardSet
from swinv2_train.engine.deepspeed import PRECISIONS
from swinv2_train.engine.ranks import Ranks
from swinv2_train.engine.state import TrainState
from swinv2_train.models.backbone import SwinTransformerV2
from swinv2_train.models.init import init_weights
from swinv2_train.tasks.classification import Classification
from swinv2_train.tasks.simmim import SimMIM
from swinv2_train.tasks.task import Task


def _build_simmim(config: Config, mean: list[float], std: list[float], card: Card | None) -> Task:
    return SimMIM(config, mean, std)


def _build_classification(config: Config, mean: list[float], std: list[float], card: Card | None) -> Task:
    if not config.task.num_classes:
        raise ConfigError(
            "task.num_classes",
            0,
            "the shards have no dataset card with classes: give their number, or pack them with swinv2-data",
        )
    return Classification(config, mean, std, card.class_counts if card else None, card.class_names if card else None)


TASKS: dict[str, Callable[[Config, list[float], list[float], Card | None], Task]] = {
    "simmim": _build_simmim,
    "classification": _build_classification,
}
"""How the task of a config section is made, from the statistics that images are normalised with and the data's card."""
EVAL_SEED = 20111
"""Held-out samples get the same masks in every run, so that their losses can be compared."""


def open_shards(config: Config) -> tuple[ShardSet, ShardSet | None]:
    """The training shards and the held-out ones.

    Raises:
        DataError: if a path is missing or holds no samples, or the classes of the shards are not those of the task.
    """
    read = partial(ShardSet.open, cache_dir=config.data.cache_dir, cache_gib=config.data.cache_gib)
    shards, held_out = read(config.data.shards), read(config.data.eval_shards) if config.data.eval_shards else None
    if isinstance(config.task, ClassificationConfig):
        check_classes(config.task.num_classes, shards.card, held_out.card if held_out else None)
    return shards, held_out


def worker_modules(config: Config) -> list[str]:
    """What the decoding processes import for a task, for `start_server`."""
    modules = [f"swinv2_train.tasks.{config.task.name}"]
    if isinstance(config.task, ClassificationConfig) and config.task.auto_augment is not None:
        modules.append(POLICY_MODULE)
    return modules


def check_classes(num_classes: int, card: Card | None, held_out: Card | None) -> None:
    """Refuse shards that number their classes differently or have more of them than the head.

    Args:
        num_classes: of the head; 0: not known yet.

    Raises:
        DataError: naming the shards and what differs.
    """
    for key, one in (("data.shards", card), ("data.eval_shards", held_out)):
        if one is None:
            continue
        if one.class_lists_differ:
            raise DataError(
                f"the shards of {key} number their classes differently, because they were packed apart: pack them "
                "again with --class-names, or together"
            )
        if num_classes and (one.num_classes or 0) > num_classes:
            raise DataError(f"{key} has {one.num_classes} classes, and task.num_classes={num_classes}")
    names = [one.class_names for one in (card, held_out) if one is not None and one.class_names]
    if len(names) == 2 and names[0] != names[1]:
        pairs = enumerate(zip(*names, strict=False))
        first = next((f"class {k} is {a!r} and {b!r}" for k, (a, b) in pairs if a != b), "one list is longer")
        raise DataError(
            f"held-out shards number their classes differently from data.shards ({first}): pack them again with "
            "--class-names of the training shards (TRAIN.dataset.json)"
        )


def build_task(config: Config, shards: ShardSet) -> Task:
    """The task of a config, with the statistics and classes of its data."""
    mean, std = resolve_statistics(config.data, shards.card, config.model.in_channels)
    return TASKS[config.task.name](config, mean, std, shards.card)


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


def sample_order(config: Config, shards: ShardSet) -> SampleOrder:
    """The order of the training samples."""
    repeats = config.task.repeats if isinstance(config.task, ClassificationConfig) else 1
    return SampleOrder(shards.num_samples, config.seed, shuffle_samples=config.data.shuffle_samples, repeats=repeats)


def train_loader(
    config: Config, plan: Plan, task: Task, shards: ShardSet, state: TrainState, ranks: Ranks
) -> TrainLoader:
    """The training micro-batches of this rank from where the run stands."""
    workers = config.data.num_workers
    # A step fetches all its micro-batches before it begins, so the workers must have a whole one ready.
    prefetch = max(config.data.prefetch_batches, -(-plan.accumulation // max(1, workers)))
    return TrainLoader(
        shards,
        sample_order(config, shards),
        task.train_transform,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_batch=state.batch,
        avoid=state.avoided_batches,
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
