"""Build the parts of a task from a config: its shards, the task itself, and its held-out batches."""

from __future__ import annotations

from typing import Protocol

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import TaskConfig
from swinv2_train.data.batch import TOGETHER
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
    """Return the samples of a batch in an evaluation whose inputs of the model fit a micro-batch, at least one.

    A sample with more inputs, such as the views of a video, takes several forward passes.
    """
    return max(1, micro_batch // task.eval_inputs)


def build_task(config: Config, shards: ShardSet) -> Task:
    """Return the task of a config, with the statistics and classes of its data."""
    mean, std = resolve_statistics(config.data, shards.card, config.model.in_channels)
    return config.task.implementation().from_data(config, mean, std, shards.card)


class OpenHeldOut(Protocol):
    """Function that opens this rank's part of the held-out samples."""

    def __call__(self, num_samples: int | None, micro_batch: int, *, figure: bool = False) -> EvalLoader:
        """Open the first samples; None: all.

        Args:
            micro_batch: inputs of the model in a forward pass.
            figure: prepare samples as for a figure, in batches of `micro_batch` samples; see `Task.figure_transform`.
        """


def evaluation_loader(config: Config, task: Task, shards: ShardSet, ranks: Ranks) -> OpenHeldOut:
    """Return a function that opens this rank's part of the held-out samples."""

    def open_loader(num_samples: int | None, micro_batch: int, *, figure: bool = False) -> EvalLoader:
        count = min(num_samples or shards.num_samples, shards.num_samples)
        decoding = DecodeOptions.of(config.data, task.mean)
        transform = task.figure_transform if figure else task.eval_transform
        size = micro_batch if figure else measured_together(config.task, micro_batch)
        size = min(size, -(-count // ranks.world_size))
        return EvalLoader(
            SampleSource(shards, transform, config.model.in_channels, EVAL_SEED, decoding),
            Share(size, ranks.rank, ranks.world_size, local_ranks(), config.data.connections),
            num_samples=count,
            workers=Workers(config.data.num_workers, config.data.prefetch_batches),
            also={TOGETHER: micro_batch},
        )

    return open_loader
