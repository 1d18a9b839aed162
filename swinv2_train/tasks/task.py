"""The task contract: everything between a decoded image and a loss, evaluation, and figures.

The loop calls only the methods of `Task`. Its settings, and everything that is needed without torch, are in its config
section (`config/tasks/`). README.md in this folder shows how to add a task.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from swinv2_train.config.checks import clip_frames, resolution
from swinv2_train.config.doubts import doubts_of_data
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import LOSS
from swinv2_train.data.augment import normalise, normalise_clips
from swinv2_train.data.batch import SIZE, Batch, Ragged, has_deep_images
from swinv2_train.data.card import Card
from swinv2_train.data.transform import Transform
from swinv2_train.models.drop_path import drop_path_noise
from swinv2_train.tasks.class_predictor import ClassPredictor
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.prediction import Predictor
from swinv2_train.tasks.report import Report
from swinv2_train.tracking.figures import film_strip, image_grid, to_pil

NORMALISER_EPSILON = 1e-5
"""Added to every weight that a loss is divided by, as in the official SimMIM code."""


def sample_seeds(config: Config, positions: torch.Tensor) -> torch.Tensor:
    """Return the seeds of what a model draws for samples at `positions` (B,): int64 (B,)."""
    # Consecutive positions yield independent noise; the seed separates runs.
    return positions + (config.seed % 2**19 << 44)


def depth_noise(config: Config, model: nn.Module, positions: torch.Tensor) -> torch.Tensor | None:
    """Return the random numbers of stochastic depth for samples at `positions` (B,); None for a model in eval mode."""
    if not model.training:
        return None
    return drop_path_noise(sample_seeds(config, positions), sum(config.model.depths))


@dataclass(frozen=True)
class Losses:
    """Loss of one micro-batch as sums, so that the step can weight them over the entire global batch.

    The loss of a step is the sum over the terms of factor * summed term / weight of the global batch, with the factors
    of `TaskConfig.terms` and the weights of `Task.weights`.
    """

    terms: Mapping[str, torch.Tensor]
    """By name, as in `TaskConfig.terms`: scalar fp32 with gradient, a term summed over the micro-batch."""

    @classmethod
    def single(cls, total: torch.Tensor) -> Losses:
        """Return a loss with one term."""
        return cls({LOSS: total})


def mean_loss(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float], factors: Mapping[str, float]) -> float:
    """Return the loss of a part of a batch by itself; terms without a weight count unchanged."""
    return sum(factors[name] * (float(term) / (weights[name] or 1.0)) for name, term in terms.items())


class Task(abc.ABC):
    """A task as the loop sees it, such as SimMIM or classification. Subclasses set the two transforms.

    Args:
        mean, std: per-channel statistics in [0, 1] that images are normalized with.
    """

    REPORT: ClassVar[type[Report]] = Report
    """Output of swinv2-eval in addition to the metrics."""
    PREDICTOR: ClassVar[type[Predictor]] = ClassPredictor
    """Predictor of swinv2-predict; the default is for a model that returns one logit per class."""
    train_transform: Transform
    eval_transform: Transform

    def __init__(self, config: Config, mean: list[float], std: list[float]) -> None:
        self.config = config
        self.mean, self.std = mean, std
        self.size = resolution(config)
        self.frames = clip_frames(config)
        """Frames of a clip; 0 for images."""

    @property
    def figure_transform(self) -> Transform:
        """Transform of the held-out samples of figures and of activation amplitudes during a run."""
        return self.eval_transform

    @classmethod
    def from_data(cls, config: Config, mean: list[float], std: list[float], card: Card | None) -> Task:
        """Return the task for a complete config and the dataset card of its training shards.

        Raises:
            ConfigError: if the card lacks something that the config requires.
        """
        return cls(config, mean, std)

    def warnings(self, card: Card | None) -> list[str]:
        """Return warnings about settings that do not fit the data, by the dataset card of the training shards."""
        return doubts_of_data(self.config, card)

    @staticmethod
    @abc.abstractmethod
    def model_of(config: Config, size: tuple[int, int]) -> nn.Module:
        """Return the model with its head; on the meta device inside `torch.device("meta")`.

        Its backbone is the attribute `backbone`: `init_from` finds it by this name.

        Args:
            size: input (height, width) in pixels.
        """

    def build_model(self) -> nn.Module:
        """Return the model at the size of the config."""
        return self.model_of(self.config, self.size)

    def weights(self, batch: Batch) -> dict[str, float]:
        """Return the weight of each term of the loss in a micro-batch: samples (the default), pixels, clips.

        They must depend only on the batch, because they are summed over all ranks before the forward pass.
        """
        return dict.fromkeys(self.config.task.terms(), float(len(batch["position"])))

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Forward pass and loss of a micro-batch on the device.

        Its randomness must depend only on `batch["position"]`. The batch may be any selection of samples: a replay runs
        them one by one.
        """

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Measured:
        """Measure this rank's part of the held-out samples.

        Every rank has the same number of batches, at least one: under ZeRO-3 a forward pass is a collective.
        """
        found = Measured()
        for batch in batches:
            found.add(self.measure(model, batch), batch)
        return found

    @abc.abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Measure a batch of held-out samples. Samples whose `valid` is False do not count in the sums."""

    def measure_any_of(self, model: nn.Module, batch: Batch, labels_of: Callable[[int], list[int]]) -> Measured:
        """Measure a batch whose samples may have several correct labels; for tasks with the option `real_labels`.

        Args:
            labels_of: returns the correct labels of the sample at a position.
        """
        name = type(self).__name__
        raise NotImplementedError(f"{name} has the option real_labels and must override measure_any_of")

    @abc.abstractmethod
    def metrics(self, found: Measured) -> dict[str, float]:
        """Return metrics by name from the combined results of all ranks; `samples` is one of them.

        Runs on the main rank. The records are in the order of positions.
        """

    def report(self, found: Measured, metrics: Mapping[str, float], class_names: Sequence[str] | None = None) -> Report:
        """Return the report of an evaluation, on the main rank.

        Args:
            found: combined results of all ranks, and `metrics` computed from them.
            class_names: a name for every class; None without names.
        """
        return self.REPORT(found, metrics, class_names)

    def images(self, batch: Batch) -> torch.Tensor:
        """(B, C, H, W) or of clips (B, C, T, H, W), fp32 on the device of the batch, normalized by the dataset's
        statistics; padding is zero.

        Of images that differ in size, the centers at the size of the config.
        """
        if self.frames:
            return normalise_clips(batch["image"], self.mean, self.std)
        if isinstance(batch["image"], Ragged):
            return torch.stack([_center(normalise(image, self.mean, self.std), self.size) for image in batch["image"]])
        return normalise(batch["image"], self.mean, self.std, batch.get(SIZE))

    def noise(self, model: nn.Module, batch: Batch) -> torch.Tensor | None:
        """Return the random numbers of stochastic depth for a batch; None for a model in eval mode."""
        return depth_noise(self.config, model, batch["position"])

    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw the model's results on a batch of held-out or training samples; by default the images themselves.

        Every rank must draw, because under ZeRO-3 a forward pass is a collective.
        """
        if self.frames:
            return image_grid([[film_strip(clip)] for clip in batch["image"].cpu().numpy()])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        images = (self.images(batch).cpu() * std + mean).clamp(0, 1)
        deep = has_deep_images(batch)
        return image_grid([[to_pil(image, stretch=deep) for image in images.numpy()]])

    def example_batch(self, batch_size: int) -> Batch:
        """Return a batch of random data in the shape of training, on the host, with `valid` as in an evaluation.

        The default has images, positions, and `valid`; a task adds its own entries.
        """
        rng = np.random.default_rng(0)
        frames = (self.frames,) if self.frames else ()
        shape = (batch_size, self.config.model.in_channels, *frames, *self.size)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        return {
            "image": torch.from_numpy(pixels),
            "position": torch.arange(batch_size),
            "valid": torch.ones(batch_size, dtype=torch.bool),
        }


def _center(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the center of an image, (C, h, w) -> (C, *size), zero beyond its sides."""
    canvas = image.new_zeros(len(image), *size)
    parts = [min(side, length) for side, length in zip(image.shape[-2:], size, strict=True)]
    top, left = ((side - part) // 2 for side, part in zip(image.shape[-2:], parts, strict=True))
    canvas[:, : parts[0], : parts[1]] = image[:, top : top + parts[0], left : left + parts[1]]
    return canvas
