"""Forward and backward of one optimizer step: the part that a replay shares with the training."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from swinv2_train.data.batch import Batch, to_device
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.launch.ranks import Ranks
from swinv2_train.tasks.task import NORMALISER_EPSILON, Task


@dataclass
class StepSums:
    """What a rank's micro-batches contributed to a step, on the device."""

    loss: torch.Tensor
    """Scalar: this rank's share of the mean loss of the global batch; the shares of all ranks add up to it."""
    micro_totals: list[torch.Tensor] = field(default_factory=list)
    """Scalar per micro-batch: its summed loss."""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """Scalar by name: the shares of what the task logs beside the loss."""


def forward_backward(engine: Engine, task: Task, batches: list[Batch], global_weight: float, ranks: Ranks) -> StepSums:
    """Forward and backward of this rank's micro-batches; the gradient is ready for `Engine.step` afterwards.

    The loss is divided by the weight of the whole global batch, so that neither the number of ranks nor the
    accumulation changes it.
    """
    scale = 1.0 / (global_weight + NORMALISER_EPSILON)
    sums = StepSums(torch.zeros((), device=ranks.device))
    for index, batch in enumerate(batches):
        losses = task.loss(engine.model, to_device(batch, ranks.device))
        engine.backward(losses.total * (scale * ranks.world_size))
        if index < len(batches) - 1:
            engine.micro_step()
        sums.loss += losses.total.detach() * scale
        sums.micro_totals.append(losses.total.detach())
        for name, value in losses.extras.items():
            sums.extras[name] = sums.extras.get(name, 0.0) + value.detach() * scale
    return sums
