"""Build the parts of a task from a config: its shards, the task itself, and its held-out batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import ClassificationConfig
from swinv2_train.data.augment import resolve_statistics
from swinv2_train.data.auto_augment import POLICY_MODULE
from swinv2_train.data.card import Card
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.loader import EvalLoader, SampleSource, Share
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import Workers
from swinv2_train.launch.ranks import Ranks
from swinv2_train.tasks.classes import check_classes
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
