"""What a task is: everything between a decoded image and a loss, and what a person wants to see of it.

The loop calls these methods and knows nothing else of a task. A new task (detection, segmentation, video) is a class
with these methods and two transforms, a section in `config/tasks.py` with its checks in `config/validate_task.py`, and
an entry in `tasks.build.TASKS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from swinv2_train.config.schema import Config
from swinv2_train.data.batch import Batch
from swinv2_train.data.transform import Transform
from swinv2_train.models.drop_path import drop_path_noise

NORMALISER_EPSILON = 1e-5
"""Added to every weight that a loss is divided by, as in the official SimMIM code."""

Sums = dict[str, float | np.ndarray]
"""What an evaluation adds up over samples, micro-batches and ranks: numbers and float64 arrays by name.

The names and shapes are the same on every rank.
"""


def add_sums(total: Sums, more: Mapping[str, float | np.ndarray]) -> Sums:
    """Both added up; an empty total is zero."""
    return {name: total[name] + value if name in total else value for name, value in more.items()}


def depth_noise(config: Config, model: nn.Module, positions: torch.Tensor) -> torch.Tensor | None:
    """The random numbers of stochastic depth for samples at `positions` (B,); None for a model in eval mode."""
    if not model.training:
        return None
    # Successive positions make independent noise; the seed moves runs apart.
    return drop_path_noise(positions + (config.seed % 2**19 << 44), sum(config.model.depths))


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
    mean: list[float]
    """Per-channel mean in [0, 1] that images are normalised with."""
    std: list[float]
    """Per-channel standard deviation in [0, 1]."""

    def build_model(self) -> nn.Module:
        """The model with its head; on the meta device inside `torch.device("meta")`."""

    def weight(self, batch: Batch) -> float:
        """How many terms the summed loss of a micro-batch has: pixels, samples. Known before the forward pass."""

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Forward pass and loss of a micro-batch on the device.

        What is random in it hangs on `batch["position"]` alone. The batch may be any selection of samples: a replay
        runs them one by one.
        """

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Sums:
        """Sums over this rank's share of the held-out samples; `metrics` turns the sums of all ranks into numbers.

        Every rank has equally many batches, at least one. Samples whose `valid` is False do not count.
        """

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Metrics by name from the sums of `evaluate` added up over all ranks; `loss` is one of them."""

    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """A picture of what the model does with a batch of held-out or training samples."""

    def example_batch(self, batch_size: int) -> Batch:
        """A batch of random data in the shape that training sees, on the host, with `valid` as in an evaluation."""
