"""Build the parts of a task from a config: its shards, the task itself, and its held-out batches."""

from __future__ import annotations

from collections.abc import Callable

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TaskConfig
from swinv2_train.data.channel_statistics import resolve_statistics
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.loader import EvalLoader, SampleSource, Share
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import Workers
from swinv2_train.launch.environment import local_ranks
from swinv2_train.launch.ranks import Ranks
from swinv2_train.tasks.task import Task

EVAL_SEED = 20111
"""Seed of held-out masks: the same in every run, so that losses can be compared."""


def measured_together(task: TaskConfig, micro_batch: int) -> int:
    """Return the samples of a batch in an evaluation that has about as many inputs of the model as a micro-batch.

    Samples with several inputs, such as the views of a video, then need no more memory than others.
    """
    return max(1, micro_batch // task.eval_inputs)


def build_task(config: Config, shards: ShardSet) -> Task:
    """Return the task of a config, with the statistics and classes of its data."""
    mean, std = resolve_statistics(config.data, shards.card, config.model.in_channels)
    return config.task.implementation().from_data(config, mean, std, shards.card)


def evaluation_loader(
    config: Config, task: Task, shards: ShardSet, ranks: Ranks
) -> Callable[[int | None, int], EvalLoader]:
    """Return a function that opens this rank's part of the first n held-out samples (None: all), in given batches."""

    def open_loader(num_samples: int | None, micro_batch: int) -> EvalLoader:
        count = min(num_samples or shards.num_samples, shards.num_samples)
        decoding = DecodeOptions.of(config.data, task.mean)
        size = min(micro_batch, -(-count // ranks.world_size))
        return EvalLoader(
            SampleSource(shards, task.eval_transform, config.model.in_channels, EVAL_SEED, decoding),
            Share(size, ranks.rank, ranks.world_size, local_ranks(), config.data.connections),
            num_samples=count,
            workers=Workers(config.data.num_workers, config.data.prefetch_batches),
        )

    return open_loader
