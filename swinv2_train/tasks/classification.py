"""Classification: a linear head on the pooled features, with one class per image or several.

The recipe is the official one of supervised training and fine-tuning: RandAugment or color jitter, random erasing,
mixup and cutmix, label smoothing (arXiv 2111.09883, appendix; the order of operations is timm's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import LOSS, ClassificationConfig
from swinv2_train.config.validate import resolution
from swinv2_train.data.augment import eval_crop, normalise, random_erase, train_image
from swinv2_train.data.auto_augment import ColourAugment
from swinv2_train.data.batch import Batch, has_deep_images
from swinv2_train.data.card import Card
from swinv2_train.data.label_source import LabelSource
from swinv2_train.data.labels import checked_labels
from swinv2_train.data.mix import blend, draw_mix, partner_of
from swinv2_train.data.sample import Sample
from swinv2_train.data.transform import Transform
from swinv2_train.models.heads import ImageClassifier
from swinv2_train.tasks.class_report import ClassReport
from swinv2_train.tasks.class_weights import class_weights
from swinv2_train.tasks.measured import Measured
from swinv2_train.tasks.metrics import classification_metrics, classification_sums
from swinv2_train.tasks.pictures import prediction_sheet
from swinv2_train.tasks.task import Losses, Task
from swinv2_train.tracking.figures import to_pil

_NO_COUNTS = (
    "the shards have no dataset card with class counts: pack them with swinv2-data, let data.label=cls count them, or "
    "set a list"
)


class ClassificationTransform(Transform):
    """Crop, flip, colors, erasing, and mixing in training. The entries of a batch:

    - `image` (C, H, W) as decoded,
    - `label`: int64 scalar; with several labels per image uint8 (ceil(K / 8),), one bit per class,
    - if samples are mixed, `partner_label` in the same form, and `share`, float32 scalar: the part of the sample that
      is its own and not its partner's.
    """

    def __init__(
        self,
        config: Config,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        training: bool,
        names: Sequence[str] | None = None,
    ) -> None:
        assert isinstance(config.task, ClassificationConfig)
        self.data, self.task = config.data, config.task
        self.size = resolution(config)
        self.mean, self.std = mean, std
        self.labels = LabelSource.of(config.data.label, names)
        self.members = ("image", *self.labels.members)
        self.training = training
        task, interpolation = self.task, self.data.augment.interpolation
        self.colours = ColourAugment(task.auto_augment, task.color_jitter, self.size, tuple(mean), interpolation)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        # Before the label: if both are broken, the list of broken samples must report the image.
        image = self.read(sample, rng)
        task = self.task
        labels = checked_labels(sample.raw, task.num_classes, multi_label=task.multi_label, read=self.labels.read)
        if self.training:
            image = self.augmented(image, rng, sample.key)
        packed = pack_labels(labels, self.task.num_classes) if self.task.multi_label else torch.tensor(labels[0])
        return {"image": image, "label": packed}

    def read(self, sample: Sample, rng: np.random.Generator) -> torch.Tensor:
        """Return the cropped image."""
        data = self.data
        if self.training:
            return train_image(sample, self.size, data.augment, rng)
        return eval_crop(sample.image, self.size, data.crop_pct, data.crop_mode, data.augment.interpolation)

    def augmented(self, image: torch.Tensor, rng: np.random.Generator, name: str) -> torch.Tensor:
        """Return the image with other colors and an erased part."""
        image = self.colours(image, rng, name)
        return random_erase(image, self.task.erase_prob, self.mean, self.std, rng)

    def partner(self, position: int) -> int | None:
        return partner_of(position, self.task.repeats) if self.training and self.task.mixes else None

    def mix(
        self, own: dict[str, torch.Tensor], other: dict[str, torch.Tensor], rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        mix = draw_mix(self.task, self.size, rng)
        return {
            "image": blend(own["image"], other["image"], mix),
            "label": own["label"],
            "partner_label": other["label"],
            "share": torch.tensor(mix.share, dtype=torch.float32),
        }


def pack_labels(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """Return class numbers as bits, lowest first: uint8 (ceil(num_classes / 8),)."""
    bits = np.zeros(num_classes, dtype=np.uint8)
    bits[list(labels)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def unpack_labels(packed: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(B, ceil(num_classes / 8)) uint8 -> (B, num_classes) float32 of 0 and 1."""
    bits = (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(1)[:, :num_classes].float()


class Classification(Task):
    """The classification task.

    Args:
        class_counts: images per class number, for `task.class_weights=balanced`; None if unknown.
        class_names: for the figures; None: use the numbers.

    Raises:
        ConfigError: if the class weights do not match the classes.
    """

    REPORT = ClassReport

    def __init__(
        self,
        config: Config,
        mean: list[float],
        std: list[float],
        class_counts: Mapping[int, int] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        assert isinstance(config.task, ClassificationConfig)
        super().__init__(config, mean, std)
        self.task = config.task
        self.class_names = class_names
        self.class_weights = class_weights(config.task.class_weights, class_counts, config.task.num_classes, _NO_COUNTS)
        self.train_transform, self.eval_transform = self.transform(training=True), self.transform(training=False)

    def transform(self, *, training: bool) -> Transform:
        """Return the transform of training or of evaluation."""
        return ClassificationTransform(self.config, self.mean, self.std, training=training, names=self.class_names)

    @classmethod
    def from_data(cls, config: Config, mean: list[float], std: list[float], card: Card | None) -> Task:
        return cls(config, mean, std, card.class_counts if card else None, card.class_names if card else None)

    @staticmethod
    def model_of(config: Config, size: tuple[int, int]) -> nn.Module:
        return ImageClassifier(config.model, max(1, config.task.num_classes), size)

    def weights(self, batch: Batch) -> dict[str, float]:
        """Return the number of samples, or with one class per image and class weights the summed weights of their
        classes."""
        if self.class_weights is None or self.task.multi_label:
            return {LOSS: float(len(batch["label"]))}
        return {LOSS: float(sum(part.double().sum() for part in self._label_weights(batch).values()))}

    def loss(self, model: nn.Module, batch: Batch) -> Losses:
        logits = self.logits(model, batch)
        loss = self._multi_label_loss(logits, batch) if self.task.multi_label else self._label_loss(logits, batch)
        return Losses.single(loss)

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(B, num_classes) fp32."""
        return model(self.images(batch), noise=self.noise(model, batch)).float()

    def _label_weights(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the weight of the loss for each of a sample's two labels, (B,): its fraction times its class
        weight."""
        labels = batch["label"]
        shares = {"label": torch.ones(len(labels), device=labels.device)}
        if "share" in batch:
            shares = {"label": batch["share"], "partner_label": 1 - batch["share"]}
        if self.class_weights is None:
            return shares
        table = self.class_weights.to(labels.device)
        return {name: share * table[batch[name]] for name, share in shares.items()}

    def _label_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the summed cross-entropy with smoothed, mixed, and weighted targets, without creating dense
        targets."""
        log_probs = logits.log_softmax(dim=1)
        parts = self._label_weights(batch)
        picked = sum(weight * -log_probs.gather(1, batch[name][:, None])[:, 0] for name, weight in parts.items())
        smoothing = self.task.label_smoothing
        spread = sum(parts.values()) * -log_probs.mean(dim=1)
        return ((1 - smoothing) * picked + smoothing * spread).sum()

    def _multi_label_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the binary cross-entropy, summed over samples: for each the (weighted) mean over classes."""
        targets = unpack_labels(batch["label"], self.task.num_classes)
        if "share" in batch:
            share = batch["share"][:, None]
            targets = targets * share + unpack_labels(batch["partner_label"], self.task.num_classes) * (1 - share)
        smoothing = self.task.label_smoothing
        targets = targets * (1 - smoothing) + 0.5 * smoothing
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        if self.class_weights is None:
            return losses.mean(dim=1).sum()
        weights = self.class_weights.to(logits.device)
        return (losses @ weights).sum() / weights.sum()

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """See `classification_sums`; the loss is the plain one, without smoothing and class weights."""
        targets = batch["label"]
        if self.task.multi_label:
            targets = unpack_labels(targets, self.task.num_classes)
        logits = self.logits(model, batch)
        return Measured(classification_sums(logits, targets, batch["valid"], self.task.multi_label))

    def measure_any_of(self, model: nn.Module, batch: Batch, labels_of: Callable[[int], list[int]]) -> Measured:
        """Like `measure`, for images with several correct classes: the label is the one with the highest score.

        A prediction is therefore correct if it is any of them. Images without a label do not count.

        Args:
            labels_of: returns the correct classes of the sample at a position.
        """
        logits = self.logits(model, batch)
        targets = []
        for row, position, valid in zip(logits, batch["position"].tolist(), batch["valid"].tolist(), strict=True):
            labels = labels_of(position) if valid else []
            targets.append(labels[int(row[labels].argmax())] if labels else -1)
        chosen = torch.tensor(targets)
        return Measured(classification_sums(logits, chosen.clamp(min=0), chosen >= 0))

    def metrics(self, found: Measured) -> dict[str, float]:
        return classification_metrics(found.sums)

    @torch.no_grad()
    def figure(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw the images with true and predicted classes, framed in green if correct and in red if not."""
        predictions, truths = self.predicted(model, batch), self.truths(batch)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        images = normalise(batch["image"].cpu(), self.mean, self.std) * std + mean
        deep = has_deep_images(batch)
        pictures = [to_pil(image, stretch=deep) for image in images.clamp(0, 1).numpy()]
        return prediction_sheet(pictures, truths, predictions, self.class_names, exact=self.task.multi_label)

    def predicted(self, model: nn.Module, batch: Batch) -> list[dict[int, float]]:
        """Return per sample the probability of the predicted class, or of every one above 0.5, by class number."""
        logits = self.logits(model, batch).cpu()
        if self.task.multi_label:
            return [_named(row * (row > 0.5)) for row in logits.sigmoid()]
        return [{int(row.argmax()): float(row.max())} for row in logits.softmax(dim=1)]

    def truths(self, batch: Batch) -> list[dict[int, float]]:
        """Return per sample the fraction of each of its classes, by class number."""
        return [_named(row) for row in self._shares(batch)]

    def _shares(self, batch: Batch) -> torch.Tensor:
        """Return (B, num_classes) on the host: the fraction of each class in a sample; for the few samples of a
        figure."""

        def dense(labels: torch.Tensor) -> torch.Tensor:
            if self.task.multi_label:
                return unpack_labels(labels.cpu(), self.task.num_classes)
            return F.one_hot(labels.cpu(), self.task.num_classes).float()

        if "share" not in batch:
            return dense(batch["label"])
        share = batch["share"].cpu()[:, None]
        return dense(batch["label"]) * share + dense(batch["partner_label"]) * (1 - share)

    def example_batch(self, batch_size: int) -> Batch:
        batch, rng = super().example_batch(batch_size), np.random.default_rng(1)
        labels = rng.integers(0, self.task.num_classes, (2, batch_size))
        names = ("label", "partner_label") if self.task.mixes else ("label",)
        for name, row in zip(names, labels, strict=False):
            packed = torch.from_numpy(row)
            if self.task.multi_label:
                packed = torch.stack([pack_labels([label], self.task.num_classes) for label in row.tolist()])
            batch[name] = packed
        if self.task.mixes:
            batch["share"] = torch.from_numpy(rng.random(batch_size, dtype=np.float32))
        return batch


def _named(row: torch.Tensor) -> dict[int, float]:
    """Return the nonzero entries of a (K,) tensor by class number."""
    return {int(label): float(row[label]) for label in row.nonzero()[:, 0]}
