"""Config section of classification."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from swinv2_train.config.checks import at_least, check_class_weights, resolution, share
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.model import count_parameters, stage_geometry
from swinv2_train.config.tasks.base import LOGITS, LOSS, Description, Metric, TaskConfig

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config

_TOP = 5
"""A top-5 accuracy requires more classes than this."""
_NAMED = 5
"""Classes that a warning names."""
_NUMBER = r"\d+(\.\d+)?"
_POLICIES = {
    "rand": rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw|3a|0)))*",
    "augmix": rf"augmix(-(m\d+|w\d+|d\d+|a{_NUMBER}|b[01]|mstd{_NUMBER}))*",
    "auto-augment": rf"(v0|v0r|original|originalr|3a)(-mstd{_NUMBER})?",
}
"""Policies that timm's parsers accept. They silently skip anything else, or fail an assertion."""
POLICY_MODULE = "timm.data.auto_augment"
"""Location of the `task.auto_augment` policies in timm."""


@dataclass
class ClassificationConfig(TaskConfig):
    """Supervised training and fine-tuning, with one class per image or several. Defaults follow the official code."""

    IMPLEMENTATION = "swinv2_train.tasks.classification:Classification"
    METRICS: ClassVar[dict[str, Metric]] = {  # for one class per image, and for several
        "top1": Metric("max", "top-1 accuracy", share=True),
        "top5": Metric("max", "top-5 accuracy", share=True),
        "mean_class_accuracy": Metric("max", "mean accuracy of the classes", share=True),
        "ece": Metric("min", "calibration error (ECE)", share=True),
        "mAP": Metric("max", "mean average precision", share=True),
        "f1": Metric("max", "F1", share=True),
        LOSS: Metric("min", "loss"),
    }
    HEAD = ("head.weight", "head.bias")
    OUTPUT = LOGITS
    PURPOSE = "for image classification"

    name: str = "classification"
    """Name of the task."""
    num_classes: int = 0
    """Classes of the head; 0: the number in the dataset card of `data.shards`."""
    multi_label: bool = False
    """Images may have several classes, or none: binary cross-entropy per class instead of softmax."""
    label_smoothing: float = 0.1
    """Fraction of the target that is spread over all classes."""
    class_weights: Any = None
    """Weight of each class in the loss: null, `balanced` (inversely to its number of images), or a list.

    With one class per image, a sample is weighted by its class, and the loss is divided by the summed weights of the
    global batch. With several classes, the mean over classes is weighted.
    """
    mixup: float = 0.8
    """Alpha of mixup (arXiv 1710.09412): blend a sample with its partner; 0: never.

    Partners are neighbors in the order of samples. They are blended as decoded, with a separate ratio for each sample;
    8-bit and 16-bit images are rounded to the nearest value.
    """
    cutmix: float = 1.0
    """Alpha of cutmix (arXiv 1905.04899): paste a rectangle of the partner; 0: never."""
    mix_prob: float = 1.0
    """Fraction of the samples that are mixed at all."""
    mix_switch_prob: float = 0.5
    """Fraction of the mixed samples that use cutmix if both are on."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment, AutoAugment, AugMix, or 3-Augment in timm notation; null: color jitter instead.

    Both are for 8-bit images of 3 channels.
    """
    color_jitter: float = 0.4
    """Strength of brightness, contrast, and saturation jitter if `auto_augment` is null or 3-Augment; 0: none."""
    erase_prob: float = 0.25
    """Probability of random erasing (arXiv 1708.04896) with noise (mean and standard deviation of the data); 0: off."""
    repeats: int = 1
    """Repeated augmentation (arXiv 1901.09335): this many differently augmented copies of a sample in one batch.

    Epochs count copies: one epoch then sees only one in `repeats` of the samples.
    """

    @property
    def mixes(self) -> bool:
        """Return whether samples are mixed in training."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics of an evaluation, other than the number of samples."""
        if self.multi_label:
            return (LOSS, "mAP", "f1")
        top5 = ("top5",) if self.num_classes == 0 or self.num_classes > _TOP else ()
        return (LOSS, "top1", *top5, "mean_class_accuracy", "ece")

    def validate(self, config: Config) -> None:
        """Check classes, augmentation, class weights, and that a global batch contains complete pairs of samples."""
        at_least("task.num_classes", self.num_classes, 0)
        if self.num_classes == 1 and not self.multi_label:
            raise ConfigError("task.num_classes", 1, "a single class is always right; use 2, or task.multi_label=true")
        if not 0 <= self.label_smoothing < 1:
            fix = f"must be a fraction from 0 to below 1{percent(self.label_smoothing)}"
            raise ConfigError("task.label_smoothing", self.label_smoothing, fix)
        for key in ("mixup", "cutmix", "color_jitter"):
            value = getattr(self, key)
            at_least(f"task.{key}", value, 0)
            if not math.isfinite(value):
                raise ConfigError(f"task.{key}", value, "must be a finite number")
        for key in ("mix_prob", "mix_switch_prob", "erase_prob"):
            share(f"task.{key}", getattr(self, key))
        self._validate_colors(config.model.in_channels, scaled=config.data.scale is not None)
        check_class_weights(self.class_weights, self.num_classes)
        self._validate_pairs(config.optim.global_batch)

    def _validate_colors(self, channels: int, *, scaled: bool) -> None:
        policy = self.auto_augment
        if policy is not None and not any(re.fullmatch(pattern, policy) for pattern in _POLICIES.values()):
            raise ConfigError(
                "task.auto_augment",
                policy,
                "is not in timm notation, such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, v0, original-mstd0.5 or 3a; "
                "null for none",
            )
        key = "auto_augment" if policy is not None else "color_jitter"
        if (policy is not None or self.color_jitter) and (scaled or channels != 3):
            found = "data.scale makes them float32" if scaled else f"model.in_channels={channels}"
            needs = "images of 8 bits" if scaled else "images of 3 channels"
            raise ConfigError(
                f"task.{key}",
                getattr(self, key),
                f"requires {needs}, but {found}: set task.auto_augment=null task.color_jitter=0",
            )

    def _validate_pairs(self, global_batch: int) -> None:
        """Check that a global batch contains complete mixing blocks of 2 * repeats samples."""
        at_least("task.repeats", self.repeats, 1)
        block = self.repeats * (2 if self.mixes else 1)
        if global_batch % block:
            why = "mixing needs pairs of samples" if self.mixes else "the copies of a sample stay in one batch"
            repeated = f", each {self.repeats} times (task.repeats)" if self.repeats > 1 and self.mixes else ""
            raise ConfigError(
                "optim.global_batch",
                global_batch,
                f"must be a multiple of {block}, because {why}{repeated}; use {-(-global_batch // block) * block}"
                + (", or task.mix_prob=0" if self.mixes else ""),
            )

    def doubts(self, config: Config) -> list[str]:
        """Return a warning for every setting that was probably not intended."""
        lines = []
        for key, highest, usual in (("mixup", 10, "0.8"), ("cutmix", 10, "1"), ("color_jitter", 2, "0.4")):
            value = getattr(self, key)
            if value > highest:
                lines.append(f"task.{key}={value:g} is far above what is usual, {usual}")
        if self.label_smoothing > 0.5:
            lines.append(
                f"task.label_smoothing={self.label_smoothing:g} leaves the correct class less than half; usual: 0.1"
            )
        return lines

    def data_doubts(self, card: Any) -> list[str]:
        """Return a warning about classes without a training sample."""
        counts = card.class_counts if card is not None else None
        if not counts:
            return []
        empty = [number for number in range(card.num_classes) if not counts[number]]
        if not empty:
            return []
        names = [card.class_names[number] if card.class_names else str(number) for number in empty[:_NAMED]]
        shown = ", ".join([*names, *([f"{len(empty) - _NAMED} more"] if len(empty) > _NAMED else [])])
        return [
            f"data.shards has samples of only {card.num_classes - len(empty):,} of its {card.num_classes:,} classes; "
            f"the others are not learned ({shown}): add samples of them, or pack the data without them"
        ]

    def describe(self, config: Config) -> Description:
        """Return classes and augmentation, and the parameters with the linear head."""
        classes = f"{self.num_classes} classes" if self.num_classes else "number of classes from the data"
        parts = [f"{classes}, several per image" if self.multi_label else classes]
        if self.label_smoothing:
            parts.append(f"label smoothing {self.label_smoothing:g}")
        mixing = [f"{name} {alpha:g}" for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)) if alpha]
        if mixing and self.mix_prob:
            parts.append(f"{' and '.join(mixing)} on {self.mix_prob:.0%} of the images")
        if self.auto_augment:
            parts.append(self.auto_augment)
        elif self.color_jitter:
            parts.append(f"color jitter {self.color_jitter:g}")
        if self.erase_prob:
            parts.append(f"random erasing {self.erase_prob:g}")
        if self.repeats > 1:
            parts.append(f"{self.repeats} copies of every image in a batch")
        parameters = count_parameters(config.model, resolution(config), self.num_classes)
        return Description(", ".join(parts), "the head", parameters)

    def head_macs(self, config: Config) -> int:
        """Return those of the linear head."""
        return stage_geometry(config.model, *resolution(config))[-1].dim * self.num_classes

    def head_bytes(self, config: Config, element: int) -> int:
        """Return those of the pooled features and of the logits in fp32, as the loss reads and normalizes them."""
        return element * stage_geometry(config.model, *resolution(config))[-1].dim + 8 * self.num_classes

    def for_evaluation(self, classes: int | None) -> ClassificationConfig:
        """Return this section with this number of classes and without class weights, which need the training data."""
        return replace(self, num_classes=self.num_classes if classes is None else classes, class_weights=None)

    def label_options(self) -> tuple[str, ...]:
        """Return the label options of swinv2-eval that apply."""
        return ("label_map",) if self.multi_label else ("label_map", "real_labels")

    def worker_modules(self) -> list[str]:
        """Return the modules of the task and, if used, of timm's augmentation."""
        return [*super().worker_modules(), *([POLICY_MODULE] if self.auto_augment is not None else [])]
