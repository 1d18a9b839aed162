"""Forward and backward of one optimizer step, shared by training and replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch

from swinv2_train.data.batch import Batch
from swinv2_train.data.device import on_device
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.launch.ranks import Ranks
from swinv2_train.tasks.task import NORMALISER_EPSILON, Task


@dataclass
class StepSums:
    """Contribution of a rank's micro-batches to a step, on the device."""

    terms: dict[str, torch.Tensor]
    """By name, scalar: this rank's part of each term of the step's loss; the parts of all ranks add up to the term."""
    micro_terms: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """Per micro-batch, by name, scalar: the summed term."""

    @property
    def loss(self) -> torch.Tensor:
        """Scalar: this rank's part of the loss of the step."""
        return reduce(torch.add, self.terms.values())


def summed_weights(task: Task, weights: list[dict[str, float]]) -> list[float]:
    """Return the summed weights of this rank's micro-batches, in the order of the terms."""
    return [sum(each[name] for each in weights) for name in task.config.task.terms()]


def forward_backward(
    engine: Engine, task: Task, batches: list[Batch], global_weights: list[float], ranks: Ranks
) -> StepSums:
    """Run forward and backward for this rank's micro-batches; the gradient is then ready for `Engine.step`.

    Each term of the loss is divided by its weight in the entire global batch, so that neither the number of ranks nor
    the accumulation changes it.

    Args:
        global_weights: of the terms, in their order, summed over all ranks.
    """
    factors = task.config.task.terms()
    weighed = zip(factors.items(), global_weights, strict=True)
    scales = {name: factor / (weight + NORMALISER_EPSILON) for (name, factor), weight in weighed}
    sums = StepSums({name: torch.zeros((), device=ranks.device) for name in scales})
    for index, batch in enumerate(on_device(batches, ranks.device)):
        terms = task.loss(engine.model, batch).terms
        _check(terms, scales)
        # DeepSpeed averages gradients over the ranks, but the parts of the ranks must be summed.
        engine.backward(reduce(torch.add, [terms[name] * (scales[name] * ranks.world_size) for name in scales]))
        if index < len(batches) - 1:
            engine.micro_step()
        detached = {name: terms[name].detach() for name in scales}
        for name, value in detached.items():
            sums.terms[name] += value * scales[name]
        sums.micro_terms.append(detached)
    return sums


def _check(terms: Mapping[str, torch.Tensor], expected: Mapping[str, float]) -> None:
    if terms.keys() != expected.keys():
        raise ValueError(f"the loss has the terms {', '.join(terms)}, and the config of the task {', '.join(expected)}")
