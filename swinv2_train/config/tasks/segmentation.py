"""Config section of semantic segmentation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks.base import LOSS, PIXEL_LOGITS, Metric, TaskConfig

SLIDE = "slide"
INFERENCES = ("whole", SLIDE)


@dataclass
class SegmentationConfig(TaskConfig):
    """A class for every pixel. Defaults follow UPerNet on Swin (mmsegmentation) and appendix A2.2 of SwinV2."""

    IMPLEMENTATION = "swinv2_train.tasks.segmentation.task:Segmentation"
    METRICS: ClassVar[dict[str, Metric]] = {
        "miou": Metric("max", "mean IoU", share=True),
        "mean_accuracy": Metric("max", "mean accuracy of the classes", share=True),
        "pixel_accuracy": Metric("max", "accuracy of the pixels", share=True),
        "dice": Metric("max", "mean Dice", share=True),
        LOSS: Metric("min", "loss"),
    }
    HEAD = (
        "decoder.classifier.weight",
        "decoder.classifier.bias",
        "auxiliary.classifier.weight",
        "auxiliary.classifier.bias",
    )
    OUTPUT = PIXEL_LOGITS
    TITLE = "semantic segmentation"
    PURPOSE = "for semantic segmentation"
    EXTRA_PARTS = "the decoder"
    PREDICT_OPTIONS: ClassVar[dict[str, str]] = {
        "inference": "inference", "overlap": "overlap", "scales": "test_scales", "flip": "test_flip",
    }  # fmt: skip
    PREDICT_FOLDERS = ("labels", "overlays")

    name: str = "segmentation"
    """Name of the task."""
    num_classes: int = 0
    """Classes of the decoder; 0: the number in the dataset card of `data.shards`."""
    label: str = "seg.png"
    """Member with the label map of a sample, a PNG or TIFF of class numbers."""
    ignore_index: int | None = None
    """Value of pixels without a class, which do not count; null: that of the dataset card, or 255 without one."""
    decoder: str = "upernet"
    """What turns features into classes: upernet (arXiv 1807.10221), fpn (a feature pyramid and its sum, for small
    data), or linear (one linear layer on the resized features of all stages, a probe of dense features)."""
    channels: int = 512
    """Channels of the decoders upernet and fpn."""
    pool_sizes: list[int] = field(default_factory=lambda: [1, 2, 3, 6])
    """Sides of the maps that upernet pools the features of stage 4 to."""
    auxiliary_weight: float = 0.4
    """Weight in the loss of a second, small decoder on stage 3 that only trains; 0: none."""
    auxiliary_channels: int = 256
    """Channels of that decoder."""
    dropout: float = 0.1
    """Fraction of the channels before a classifier that are zeroed in training, drawn per sample from its position."""
    class_weights: Any = None
    """Weight of each class in the cross-entropy: null, `balanced` (inversely to its pixels, mean 1), or a list."""
    focal_gamma: float = 0.0
    """Gamma of the focal loss (arXiv 1708.02002) in the cross-entropy, for rare classes; 0: plain cross-entropy."""
    dice_weight: float = 0.0
    """Weight of a Dice term (arXiv 1606.04797), the mean over the classes of an image, next to the cross-entropy."""
    resize: str = "short"
    """Reference for `scale` and for evaluation: short (the short side of the image becomes that of `data.resolution`,
    as for ADE20K) or native (pixels keep their size, for tiles, satellite, and microscope images)."""
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    """Random factor of a training image, as [low, high]."""
    max_aspect: float = 4.0
    """With `resize=short`: the longer side becomes at most this many times `data.resolution` (2048 / 512)."""
    max_class_share: float = 0.75
    """A training crop with a larger fraction of one class is drawn again, up to ten times; 1: never."""
    photometric: bool = True
    """Random brightness, contrast, saturation, and hue in training; for 8-bit images of 3 channels."""
    inference: str = "whole"
    """Evaluation and prediction: whole (the entire image at once) or slide (windows of `data.resolution`)."""
    overlap: float = 0.34
    """With `inference=slide`: fraction of a window that neighbors share; their scores are blended."""
    test_scales: list[float] = field(default_factory=lambda: [1.0])
    """Factors of the image size in evaluation and prediction; the probabilities of several are averaged."""
    test_flip: bool = False
    """Average the probabilities with those of the mirrored image in evaluation and prediction."""

    def check_prediction(self, given: Collection[str] = ()) -> None:
        if self.inference not in INFERENCES:
            raise ConfigError("task.inference", self.inference, f"must be one of {', '.join(INFERENCES)}")
        if not 0 <= self.overlap < 1:
            raise ConfigError("task.overlap", self.overlap, "must be a fraction of a window, from 0 to below 1")
        if not self.test_scales or not all(scale > 0 for scale in self.test_scales):
            raise ConfigError("task.test_scales", self.test_scales, "must be one or more numbers above 0, such as [1]")
        if "overlap" in given and self.inference != SLIDE:
            raise ConfigError("overlap", self.overlap, "applies to sliding windows only: add inference=slide")
