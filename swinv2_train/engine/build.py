"""Build parts of a run from its config: model, order of samples, training batches."""

from __future__ import annotations

import torch
from torch import nn

from swinv2_train.config.order import GROUPS, order_of
from swinv2_train.config.plan import Plan
from swinv2_train.config.schema import Config
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.lanes import LaneOrder
from swinv2_train.data.loader import SampleSource, Share, TrainLoader
from swinv2_train.data.order import Order, SampleOrder
from swinv2_train.data.shards import ShardSet
from swinv2_train.data.workers import Workers
from swinv2_train.engine.state import TrainState
from swinv2_train.interop.transfer import canonical_names
from swinv2_train.launch.environment import local_ranks
from swinv2_train.launch.ranks import Ranks
from swinv2_train.models.backbone import SwinTransformerV2
from swinv2_train.models.init import init_weights
from swinv2_train.models.precision import PRECISIONS
from swinv2_train.models.trainable import apply_freeze
from swinv2_train.tasks.task import Task


def build_model(task: Task, config: Config, device: torch.device) -> nn.Module:
    """Return the model on the device in its training dtype, with seeded initial weights (identical on every rank).

    Parameters that `optim.freeze` names get no gradient.

    Raises:
        ConfigError: if it names something that the model does not have, or everything that it has; or if the task has
            named a part of its model like a part of the backbone.
    """
    with torch.device("meta"):
        model = task.build_model()
    canonical_names(model.state_dict(), config.task)  # later on, its checkpoints could not be read
    model = model.to(PRECISIONS[config.engine.precision]).to_empty(device=device)
    init_weights(model, torch.Generator().manual_seed(config.seed))
    apply_freeze(model, config.optim.freeze)
    if config.engine.compile:
        for module in model.modules():
            if isinstance(module, SwinTransformerV2):
                module.compile_blocks()
    return model


def sample_order(config: Config, shards: ShardSet) -> Order:
    """Return the order of the training samples."""
    order, lanes, block = order_of(config)
    sizes = {"shuffle_samples": config.data.shuffle_samples, "block_samples": block, "repeats": config.task.repeats}
    if order == GROUPS:
        return SampleOrder(shards.num_samples, config.seed, **sizes)
    return LaneOrder(shards.num_samples, config.seed, lanes=lanes, **sizes)


def train_loader(
    config: Config, plan: Plan, task: Task, shards: ShardSet, state: TrainState, ranks: Ranks
) -> TrainLoader:
    """Return an iterator over this rank's training micro-batches from the run's current position."""
    decoding = DecodeOptions.of(config.data, task.mean, repeats=config.task.repeats)
    return TrainLoader(
        SampleSource(shards, task.train_transform, config.model.in_channels, config.seed, decoding),
        sample_order(config, shards),
        Share(plan.micro_batch, ranks.rank, ranks.world_size, local_ranks(), config.data.connections),
        global_batch=plan.global_batch,
        start_batch=state.batch,
        first_position=state.changed_position,
        avoid=state.avoided_batches,
        workers=Workers(config.data.num_workers, prefetched(config, plan)),
    )


def prefetched(config: Config, plan: Plan) -> int:
    """Return the number of micro-batches that each worker keeps ready.

    A step fetches all its micro-batches before it begins, so together the workers keep at least a full step ready.
    """
    return max(config.data.prefetch_batches, -(-plan.accumulation // max(1, config.data.num_workers)))
