"""The `task` section: one dataclass per task, and which one a run has is told by its `name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from swinv2_train.config.section import Section

_TOP = 5
"""An accuracy among the first so many classes needs more classes than that."""


@dataclass
class TaskConfig(Section):
    """What every task section has."""

    METRICS: ClassVar[dict[str, str]] = {"loss": "min"}
    """What an evaluation of the task may measure, other than the number of samples, and the better end of each."""

    name: str = ""
    """Which task this section is for."""

    def metrics(self) -> tuple[str, ...]:
        """Return the names of what an evaluation of this config measures, other than the number of samples."""
        return tuple(self.METRICS)


@dataclass
class SimMIMConfig(TaskConfig):
    """Masked image modelling (SimMIM, arXiv 2111.09886, with the target normalisation of the SwinV2 recipe)."""

    name: str = "simmim"
    """Which task this section is for."""
    mask_patch_size: int = 32
    """Side of a masked patch in pixels; a multiple of `model.patch_size`."""
    mask_ratio: float = 0.6
    """Share of patches that is masked, rounded up to whole patches."""
    norm_target_window: int = 47
    """Odd side of the sliding window that normalises the target, in pixels; 0 takes the plain image."""


@dataclass
class ClassificationConfig(TaskConfig):
    """Supervised training and fine-tuning: one class per image, or several. Defaults are those of the official code."""

    METRICS: ClassVar[dict[str, str]] = {
        "loss": "min", "top1": "max", "top5": "max", "mean_class_accuracy": "max", "ece": "min", "mAP": "max",
        "f1": "max",
    }  # fmt: skip
    """The names of both kinds, one class per image and several."""

    name: str = "classification"
    """Which task this section is for."""
    num_classes: int = 0
    """Classes of the head; 0: as many as the dataset card of `data.shards` knows."""
    multi_label: bool = False
    """An image may have several classes, or none: binary cross-entropy per class instead of softmax."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    class_weights: Any = None
    """Weight of each class in the loss: null, `balanced` (inversely to its number of images), or a list.

    With one class per image a sample counts by the weight of its class, and the loss is divided by the summed weights
    of the global batch. With several, the mean over classes is weighted.
    """
    mixup: float = 0.8
    """Alpha of mixup (arXiv 1710.09412): blend a sample with its partner; 0: never.

    Partners are neighbours in the order of samples. They are blended as 8 or 16 bit images, rounded to the nearest
    value, each sample with a ratio of its own.
    """
    cutmix: float = 1.0
    """Alpha of cutmix (arXiv 1905.04899): paste a rectangle of the partner; 0: never."""
    mix_prob: float = 1.0
    """Share of the samples that is mixed at all."""
    mix_switch_prob: float = 0.5
    """Share of the mixed samples that gets cutmix where both are on."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment, AutoAugment, AugMix or 3-Augment in timm's notation; null: colour jitter in its place.

    Both are for 8-bit images of 3 channels.
    """
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter where `auto_augment` is null or 3-Augment; 0: none."""
    erase_prob: float = 0.25
    """Probability of random erasing (arXiv 1708.04896) with noise of the data's mean and deviation; 0: never."""
    repeats: int = 1
    """Repeated augmentation (arXiv 1901.09335): so many differently augmented copies of a sample in one batch.

    Epochs count copies: a run over one epoch then sees one in `repeats` of the samples.
    """

    def metrics(self) -> tuple[str, ...]:
        """Return the names of what an evaluation of this config measures, other than the number of samples."""
        if self.multi_label:
            return ("loss", "mAP", "f1")
        top5 = ("top5",) if self.num_classes == 0 or self.num_classes > _TOP else ()
        return ("loss", "top1", *top5, "mean_class_accuracy", "ece")


TASK_SECTIONS: dict[str, type[TaskConfig]] = {"simmim": SimMIMConfig, "classification": ClassificationConfig}
"""The section of each task by its name."""
