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
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.loader import EvalLoader, SampleSource, Share, TrainLoader
from swinv2_train.data.order import SampleOrder
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import Workers
from swinv2_train.engine.classes import check_classes
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
    data = config.data
    read = partial(ShardSet.open, cache_dir=data.cache_dir, cache_gib=data.cache_gib, image=data.image)
    shards, held_out = read(data.shards), read(data.eval_shards) if data.eval_shards else None
    if isinstance(config.task, ClassificationConfig):
        check_classes(config.task.num_classes, shards.card, held_out.card if held_out else None)
    return shards, held_out


def worker_modules(config: Config) -> list[str]:
    """What the decoding processes import for a task, for `start_server`."""
    modules = [f"swinv2_train.tasks.{config.task.name}"]
    if isinstance(config.task, ClassificationConfig) and config.task.auto_augment is not None:
        modules.append(POLICY_MODULE)
    return modules


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
    decoding = DecodeOptions.of(config.data, task.mean)
    return TrainLoader(
        SampleSource(shards, task.train_transform, config.model.in_channels, config.seed, decoding),
        sample_order(config, shards),
        Share(plan.micro_batch, ranks.rank, ranks.world_size),
        global_batch=plan.global_batch,
        start_batch=state.batch,
        avoid=state.avoided_batches,
        workers=Workers(config.data.num_workers, prefetched(config, plan)),
    )


def prefetched(config: Config, plan: Plan) -> int:
    """Return the micro-batches that each worker has ready.

    A step fetches all its micro-batches before it begins, so together the workers have at least a whole step ready.
    """
    return max(config.data.prefetch_batches, -(-plan.accumulation // max(1, config.data.num_workers)))


def evaluation_loader(
    config: Config, task: Task, shards: ShardSet, ranks: Ranks
) -> Callable[[int | None, int], EvalLoader]:
    """A function that opens this rank's share of the first n held-out samples (None: of all), in given batches."""

    def open_loader(num_samples: int | None, micro_batch: int) -> EvalLoader:
        count = min(num_samples or shards.num_samples, shards.num_samples)
        decoding = DecodeOptions.of(config.data, task.mean)
        return EvalLoader(
            SampleSource(shards, task.eval_transform, config.model.in_channels, EVAL_SEED, decoding),
            Share(min(micro_batch, -(-count // ranks.world_size)), ranks.rank, ranks.world_size),
            num_samples=count,
            workers=Workers(config.data.num_workers, config.data.prefetch_batches),
        )

    return open_loader
