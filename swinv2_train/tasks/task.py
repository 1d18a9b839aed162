"""What a task is: everything between a decoded image and a loss, and what a person wants to see of it.

The loop calls these methods and knows nothing else of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

NORMALISER_EPSILON = 1e-5
"""Added to every weight that a loss is divided by, as in the official SimMIM code."""

Batch = dict[str, Any]
"""A micro-batch: tensors by name, batch first; always `image` and `position`."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


Transform = Callable[[torch.Tensor, np.random.Generator], dict[str, torch.Tensor]]
"""One decoded image (C, H, W), 8 or 16 bit, and the random numbers of its sample position -> the entries of a batch."""


@dataclass(frozen=True)
class Losses:
    """The loss of one micro-batch as a sum, so that the loop can weigh it over the whole global batch."""

    total: torch.Tensor
    """Scalar fp32, with gradient: the summed loss.

    Divided by the weight of the global batch it is the loss of the step.
    """
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further sums to log under their names, without gradient, over the same weight."""


class Task(Protocol):
    """SimMIM, classification, ... as the loop sees it."""

    train_transform: Transform
    eval_transform: Transform

    def build_model(self) -> nn.Module:
        """The model with its head; on the meta device inside `torch.device("meta")`."""

    def weight(self, batch: Batch) -> float:
        """How many terms the summed loss of a micro-batch has: pixels, samples. Known before the forward pass."""

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Forward pass and loss of a micro-batch on the device."""

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Sums over this rank's share of the held-out samples; `metrics` turns the sums of all ranks into numbers."""

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics by name from the sums of `evaluate` added up over all ranks."""

    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """A picture of what the model does with a batch."""

    def example_batch(self, batch_size: int) -> Batch:
        """A batch of random data in the shape that training sees, on the host."""
