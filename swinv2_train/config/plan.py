"""Batches, steps, and learning rates of a run, derived from the config and the number of ranks and samples.

A plan is never stored or resumed. It is derived again at every start, so a run can resume on another number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.text import counted


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run. Learning rates are for the global batch; lengths are in optimizer steps."""

    world_size: int
    num_samples: int
    global_batch: int
    micro_batch: int
    """Samples per rank in one forward pass."""
    accumulation: int
    """Forward passes per rank in one step."""
    total_steps: int
    warmup_steps: int
    milestones: tuple[int, ...]
    peak_lr: float
    warmup_lr: float
    min_lr: float
    ahead: float = 0.0
    """Steps that the schedule is ahead of the count of steps, because earlier steps had another global batch."""
    changed_step: int = 0
    """Step at which the global batch last changed; 0: it never did."""
    changed_samples: int = 0
    """Samples up to that step."""

    @property
    def epochs(self) -> float:
        return self.samples / self.num_samples

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return self.changed_samples + (self.total_steps - self.changed_step) * self.global_batch


def split_batch(config: Config, world_size: int) -> tuple[int, int]:
    """Return the micro-batch and the number of accumulation steps of each rank.

    The micro-batch is the largest divisor of a rank's part of the batch that `engine.micro_batch` allows.
    """
    total = config.optim.global_batch
    if total % world_size:
        below, above = total // world_size * world_size, -(-total // world_size) * world_size
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            "optim.global_batch",
            total,
            f"does not divide among {counted(world_size, 'rank')}; use {near}, or another number of ranks",
        )
    share = total // world_size
    most = config.engine.micro_batch or share
    micro = next(size for size in range(min(most, share), 0, -1) if share % size == 0)
    return micro, share // micro


def make_plan(config: Config, world_size: int, num_samples: int) -> Plan:
    """Derive the plan of a run.

    Raises:
        ConfigError: if the batch does not divide among the ranks, or if the run would have no step.
    """
    optim = config.optim
    micro_batch, accumulation = split_batch(config, world_size)

    def to_steps(epochs: float) -> int:
        return int(epochs * num_samples / optim.global_batch + 1e-6)

    total = optim.steps if optim.steps is not None else to_steps(optim.epochs or 0)
    if total < 1:
        raise ConfigError(
            "optim.epochs",
            optim.epochs,
            f"{counted(num_samples, 'sample')} make less than one step of {optim.global_batch}; "
            "use more epochs or a smaller optim.global_batch",
        )
    warmup = optim.warmup_steps if optim.warmup_steps is not None else to_steps(optim.warmup_epochs or 0)
    if warmup >= total:
        key = "optim.warmup_steps" if optim.warmup_steps is not None else "optim.warmup_epochs"
        raise ConfigError(
            key,
            getattr(optim, key.split(".")[1]),
            f"the warm-up of {counted(warmup, 'step')} is not shorter than the run of {total}",
        )
    milestones = tuple(int(mark) if optim.steps is not None else to_steps(mark) for mark in optim.milestones)
    scale = optim.lr_scale * (optim.global_batch / optim.lr_reference_batch if optim.lr_reference_batch else 1.0)
    return Plan(
        world_size=world_size,
        num_samples=num_samples,
        global_batch=optim.global_batch,
        micro_batch=micro_batch,
        accumulation=accumulation,
        total_steps=total,
        warmup_steps=warmup,
        milestones=milestones,
        peak_lr=optim.lr * scale,
        warmup_lr=optim.warmup_lr * scale,
        min_lr=optim.min_lr * scale,
    )
