"""Semantic segmentation: a class for every pixel (UPerNet on Swin: arXiv 1807.10221, 2103.14030)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.config.tasks.segmentation import AUXILIARY, CROSS_ENTROPY, DICE
from swinv2_train.data.augment import normalise
from swinv2_train.data.batch import SIZE, Batch, Ragged, has_deep_images
from swinv2_train.data.card import Card
from swinv2_train.data.card_label_maps import MEMBER, LabelMapFacts, ignore_value
from swinv2_train.data.transform import Transform
from swinv2_train.models.channel_dropout import channel_noise
from swinv2_train.models.segmenter import Segmenter
from swinv2_train.models.state import evaluating
from swinv2_train.tasks.class_weights import class_weights
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.report import percent_text
from swinv2_train.tasks.segmentation.inference import Inference, TensorSource, score_strips
from swinv2_train.tasks.segmentation.loss import PixelLoss
from swinv2_train.tasks.segmentation.metrics import PixelCounts, segmentation_metrics, summed_cross_entropy
from swinv2_train.tasks.segmentation.pictures import Segmented, segmentation_sheet
from swinv2_train.tasks.segmentation.predictor import LabelMapPredictor
from swinv2_train.tasks.segmentation.report import SegmentationReport
from swinv2_train.tasks.segmentation.transform import SegmentationTransform, label_type
from swinv2_train.tasks.task import Losses, Task, sample_seeds

_AUXILIARY_STRIDE = 4
"""Cells of the logits per cell of the auxiliary ones, along each side: stage 3 against stage 1."""
_NO_COUNTS = (
    "the shards have no dataset card that counts the pixels of the classes: pack them with swinv2-data pack --labels, "
    "or set a list"
)


class Segmentation(Task):
    """The segmentation task.

    Args:
        facts: counts over the label maps of the training shards; None if they are unknown.
        class_names: a name for every class, for the figures; None: the numbers.

    Raises:
        ConfigError: if the config contradicts the label maps, or the class weights do not match the classes.
    """

    REPORT = SegmentationReport
    PREDICTOR = LabelMapPredictor

    def __init__(
        self,
        config: Config,
        mean: list[float],
        std: list[float],
        facts: LabelMapFacts | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        assert isinstance(config.task, SegmentationConfig)
        super().__init__(config, mean, std)
        self.task = config.task
        self.class_names = class_names if class_names and len(class_names) == self.task.num_classes else None
        self.ignore = ignored_value(self.task, facts)
        weights = class_weights(
            self.task.class_weights, facts.pixels if facts else None, self.task.num_classes, _NO_COUNTS
        )
        self.pixel_loss = PixelLoss(self.ignore, weights, self.task.focal_gamma)
        self.train_transform: Transform = SegmentationTransform(config, training=True, ignore=self.ignore)
        self.eval_transform: Transform = SegmentationTransform(config, training=False, ignore=self.ignore)

    @classmethod
    def from_data(cls, config: Config, mean: list[float], std: list[float], card: Card | None) -> Task:
        if card is None:
            return cls(config, mean, std)
        # The card counts the label maps that swinv2-data has packed, not other members.
        packed = config.task.label == MEMBER
        return cls(config, mean, std, card.label_maps if packed else None, card.class_names if packed else None)

    @staticmethod
    def model_of(config: Config, size: tuple[int, int]) -> nn.Module:
        assert isinstance(config.task, SegmentationConfig)
        return Segmenter(config.model, config.task, max(1, config.task.num_classes), size)

    def weights(self, batch: Batch) -> dict[str, float]:
        """Return the pixels of the label maps, ignored ones and padding included; for the Dice term, the samples."""
        samples, pixels = float(len(batch["label"])), float(batch["label"].numel())
        return {name: samples if name == DICE else pixels for name in self.task.terms()}

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        labels, stride = batch["label"], self.config.model.patch_size
        logits, auxiliary = model(
            self.images(batch), noise=self.noise(model, batch), dropout=self._dropout(model, batch["position"])
        )
        loss = self.pixel_loss
        if loss.class_weights is not None:
            loss = replace(loss, class_weights=loss.class_weights.to(logits.device))
        if self.task.dice_weight:
            cross_entropy, dice = loss.cross_entropy_and_dice(logits, labels, stride)
            terms = {CROSS_ENTROPY: cross_entropy, DICE: dice}
        else:
            terms = {CROSS_ENTROPY: loss.cross_entropy(logits, labels, stride)}
        if auxiliary is not None:
            terms[AUXILIARY] = loss.cross_entropy(auxiliary, labels, _AUXILIARY_STRIDE * stride)
        return Losses(terms)

    def _dropout(self, model: nn.Module, positions: Tensor) -> Tensor | None:
        """Return the random numbers of the dropped channels; None for a model in eval mode."""
        if not model.training:
            return None
        (segmenter,) = (module for module in model.modules() if isinstance(module, Segmenter))
        return channel_noise(sample_seeds(self.config, positions), segmenter.dropout_channels)

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Compare predictions with the label maps, at their size. Every image has forward passes of its own."""
        counts, total, samples = self._counts(batch["position"].device), 0.0, 0
        for (image, label), valid in zip(self._pairs(batch), batch["valid"].tolist(), strict=True):
            # Also images that do not count: under ZeRO-3 a forward pass is a collective.
            for rows, scores in self._scores(model, image, label):
                if valid:
                    counts.add(label[rows], scores.argmax(dim=0))
                    total += float(summed_cross_entropy(scores, label[rows], self.ignore))
            samples += valid and bool((label != self.ignore).any())
        return Measured(counts.sums() | {"total": total, "samples": float(samples)})

    def metrics(self, found: Measured) -> dict[str, float]:
        return segmentation_metrics(found.sums)

    @torch.no_grad()
    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw rows of image, label map, prediction, and errors, with the mIoU of each image and of all of them."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        every, shown, deep = Measured(), [], has_deep_images(batch)
        with evaluating(model):
            for image, label in self._pairs(batch):
                predicted = torch.cat([scores.argmax(dim=0) for _, scores in self._scores(model, image, label)])
                counts = self._counts(label.device)
                counts.add(label, predicted)
                sums = counts.sums() | {"total": 0.0, "samples": 1.0}
                every.add(Measured(sums), batch)
                pixels = (image.cpu() * std + mean).clamp(0, 1).numpy()
                title = f"mIoU\n{percent_text(segmentation_metrics(sums)['miou'])}"
                shown.append(Segmented(pixels, label.cpu().numpy(), predicted.cpu().numpy(), title, deep))
        scores = segmentation_metrics(every.sums)
        caption = (
            f"these images together: mean IoU {percent_text(scores['miou'])}, "
            f"accuracy of the pixels {percent_text(scores['pixel_accuracy'])}"
        )
        return segmentation_sheet(shown, self.task.num_classes, self.ignore, self.class_names, caption)

    def example_batch(self, batch_size: int) -> Batch:
        labels = np.random.default_rng(0).integers(0, self.task.num_classes, (batch_size, *self.size))
        labels[:, : self.size[0] // 8] = self.ignore
        return super().example_batch(batch_size) | {
            SIZE: torch.tensor([self.size] * batch_size),
            "label": torch.from_numpy(labels.astype(label_type(self.ignore, self.task.num_classes))),
        }

    def _counts(self, device: torch.device) -> PixelCounts:
        return PixelCounts(self.task.num_classes, self.ignore, device)

    def _pairs(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every normalized image (C, h, w) with its label map (H, W), without the padding of training."""
        if isinstance(batch["image"], Ragged):
            for image, label in zip(batch["image"], batch["label"], strict=True):
                yield normalise(image, self.mean, self.std), label
            return
        for image, label, (height, width) in zip(self.images(batch), batch["label"], batch[SIZE].tolist(), strict=True):
            yield image[:, :height, :width], label[:height, :width]

    def _scores(self, model: nn.Module, image: Tensor, label: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the scores of an image at the size of its label map, in strips: (rows, (K, rows, W) fp32)."""
        # Windows one by one: in batches, their rounding would depend on the micro-batch.
        size = (label.shape[0], label.shape[1])
        for first, scores in score_strips(model, TensorSource(image), Inference.of(self.config), size):
            yield slice(first, first + scores.shape[1]), scores


def ignored_value(task: SegmentationConfig, facts: LabelMapFacts | None) -> int:
    """Return the label of pixels that do not count.

    Raises:
        ConfigError: if the config contradicts the label maps.
    """
    if facts is None:
        return ignore_value(task.num_classes) if task.ignore_index is None else task.ignore_index
    if task.ignore_index not in (None, facts.ignore):
        fix = f"the packed label maps have {facts.ignore} for pixels without a class; set null"
        raise ConfigError("task.ignore_index", task.ignore_index, fix)
    return facts.ignore
