"""Completion and checks of a config before its run starts; torch is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.config.validate import validate

if TYPE_CHECKING:
    from swinv2_train.cli.samples import Samples
    from swinv2_train.data.card import Card


def finish(config: Config, card: Card | None, *, weights: bool = True) -> None:
    """Complete a config, check it again, and freeze it; arguments as for `complete`.

    Raises:
        ConfigError, CheckpointError, DataError: if it cannot be run.
    """
    from swinv2_train.engine.fill_in import complete
    from swinv2_train.engine.selection import selection

    complete(config, card, weights=weights)
    validate(config)
    selection(config)  # rejects names that the model does not have
    config.freeze()


def check_memory(config: Config, num_ranks: int, samples: Samples) -> None:
    """Check that the batch divides and fits into `launch.gpu_memory_gib`; the ranks compare it with their own GPUs."""
    from swinv2_train.engine.selection import selection
    from swinv2_train.planner.fit import check_fit

    check_fit(config, make_plan(config, num_ranks, samples.count), None, selection(config).frozen)
