"""Completion and checks of a config before its run starts; torch is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def batch_doubts(config: Config, saved: dict[str, Any] | None) -> list[str]:
    """Return a line if the plan of a dry run is not that of the run that it would resume, because its batch changed.

    Args:
        saved: metadata of the checkpoint that the run would resume from; None without one.
    """
    from swinv2_train.checkpoint.identity import earlier_batches, global_batch_of

    optim, now = config.optim, config.optim.global_batch
    in_steps = optim.steps is not None and optim.warmup_steps is not None
    if saved is None or in_steps or not (earlier_batches(saved) or global_batch_of(saved) not in (None, now)):
        return []
    return [
        f"the length, the warm-up, and the milestones are those of a new run with optim.global_batch={now}; the run "
        "that this command would resume had another batch before, and logs its own plan when it starts"
    ]


def check_memory(config: Config, num_ranks: int, samples: Samples) -> None:
    """Check that the batch divides and fits into `launch.gpu_memory_gib`; the ranks compare it with their own GPUs."""
    from swinv2_train.engine.selection import selection
    from swinv2_train.planner.fit import check_fit

    check_fit(config, make_plan(config, num_ranks, samples.count), None, selection(config).frozen)
