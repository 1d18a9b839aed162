"""Config section of semantic segmentation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from swinv2_train.config.checks import at_least, check_class_weights, resolution, share
from swinv2_train.config.choices import check_choice
from swinv2_train.config.data import DataConfig
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.model import count_parameters, stage_geometry
from swinv2_train.config.tasks.base import LOSS, PIXEL_LOGITS, Description, Metric, TaskConfig
from swinv2_train.config.tasks.entire_images import without_effect
from swinv2_train.config.tasks.segmentation_head import STRIP_BYTES, head_bytes, head_macs, head_parameters

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config

SLIDE = "slide"
CROSS_ENTROPY, AUXILIARY, DICE = "cross_entropy", "auxiliary", "dice"
"""Names of the terms of the loss."""
HIGHEST_BYTE = 255
"""Value of ignored pixels in label maps of 8 bits."""
HIGHEST_VALUE = 65535
"""The same in label maps of 16 bits."""
_FAR_ABOVE = 10
_LABEL = r"([\w-]+\.)*(png|tif|tiff)"


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
    SIZES_DIFFER = True
    TITLE = "semantic segmentation"
    PURPOSE = "for semantic segmentation"
    EXTRA_PARTS = "the decoder"
    PREDICT_OPTIONS: ClassVar[dict[str, str]] = {
        "inference": "inference", "overlap": "overlap", "scales": "test_scales", "flip": "test_flip",
    }  # fmt: skip
    PREDICT_FOLDERS: ClassVar[dict[str, tuple[str, ...]]] = {"labels": (".png", ".tif"), "overlays": (".jpg",)}
    FREE = ("module", "inference", "overlap", "test_scales", "test_flip")

    name: str = "segmentation"
    """Name of the task."""
    num_classes: int = 0
    """Classes of the decoder; 0: the number in the dataset card of `data.shards`."""
    label: str = "seg.png"
    """Member with the label map of a sample, a PNG or TIFF of class numbers."""
    ignore_index: int | None = None
    """Value of pixels without a class, which do not count; null: that of the dataset card, or without one the highest
    of 8 bits, 255, or with more classes that of 16 bits, 65535."""
    decoder: str = "upernet"
    """Decoder of the features: upernet (arXiv 1807.10221), fpn (a feature pyramid and its sum, for small
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
    """Random brightness, contrast, saturation, and hue in training; for images of 3 channels, of 8 or 16 bits."""
    inference: str = "whole"
    """Evaluation and prediction: whole (the entire image at once) or slide (windows of `data.resolution`)."""
    overlap: float = 0.34
    """With `inference=slide`: fraction of a window that neighbors share; their scores are blended."""
    test_scales: list[float] = field(default_factory=lambda: [1.0])
    """Factors of the image size in evaluation and prediction; the probabilities of several are averaged."""
    test_flip: bool = False
    """Average the probabilities with those of the mirrored image in evaluation and prediction."""

    @property
    def label_member(self) -> str | None:
        """Member with the label map, which is never the image."""
        return self.label

    def maps_remedy(self, *, training: bool) -> str | None:
        """Return the remedy if no sample has a label map."""
        return "set task.label to the one with the label maps, or pack the images with swinv2-data pack --labels"

    def terms(self) -> dict[str, float]:
        """Return the terms of the loss by name, each with its factor in the sum."""
        factors = {CROSS_ENTROPY: 1.0, AUXILIARY: self.auxiliary_weight, DICE: self.dice_weight}
        return {name: factor for name, factor in factors.items() if factor > 0}

    def validate(self, config: Config) -> None:
        """Check classes, label maps, decoder, loss, augmentation, and inference."""
        self._validate_labels(config.data)
        self._validate_decoder()
        self._validate_loss()
        self._validate_augmentation(config)
        self.check_prediction()
        if self.inference == SLIDE and config.engine.zero_stage == 3 and config.data.eval_shards:
            hint = (
                "images of different sizes have different numbers of windows, and under engine.zero_stage=3 every rank "
                "needs the same number of forward passes: evaluate with task.inference=whole, or use a lower stage"
            )
            raise ConfigError("task.inference", SLIDE, hint)

    def check_prediction(self, given: Mapping[str, Any] | None = None) -> None:
        """Check the options of evaluation and prediction, see `TaskConfig.check_prediction`."""
        check_choice("task.resize", self.resize)
        at_least("task.max_aspect", self.max_aspect, 1)
        if not re.fullmatch(_LABEL, self.label):
            hint = "must be a member with a label map, such as seg.png, mask.png, or label.tif"
            raise ConfigError("task.label", self.label, hint)
        if self.ignore_index is not None and not 0 <= self.ignore_index <= HIGHEST_VALUE:
            hint = f"must be a value of label maps, from 0 to {HIGHEST_VALUE}, or null"
            raise ConfigError("task.ignore_index", self.ignore_index, hint)
        check_choice("task.inference", self.inference)
        if not 0 <= self.overlap < 1:
            fix = f"must be a fraction of a window, from 0 to below 1{percent(self.overlap)}"
            raise ConfigError("task.overlap", self.overlap, fix)
        if not self.test_scales or not all(0 < scale < math.inf for scale in self.test_scales):
            raise ConfigError("task.test_scales", self.test_scales, "must be factors above 0, such as [0.75,1.0,1.25]")
        given = given or {}
        if "overlap" in given and self.inference != SLIDE:
            raise ConfigError("overlap", self.overlap, "applies to sliding windows only: add inference=slide")
        if "batch" in given and self.inference != SLIDE:
            fix = "whole images are predicted one by one: add inference=slide, or omit batch"
            raise ConfigError("batch", given["batch"], fix)

    def _validate_labels(self, data: DataConfig) -> None:
        at_least("task.num_classes", self.num_classes, 0)
        if self.num_classes == 1:
            raise ConfigError("task.num_classes", 1, "a single class is always right; use 2, the second for the rest")
        if self.num_classes > HIGHEST_VALUE:
            hint = f"label maps have at most 16 bits, so at most {HIGHEST_VALUE} classes"
            raise ConfigError("task.num_classes", self.num_classes, hint)
        if self.label == data.image:
            raise ConfigError("task.label", self.label, "is data.image as well; name the member of the label map")
        if data.label is not None:
            hint = "is for classes of entire images; task.label names the member with the label map"
            raise ConfigError("data.label", data.label, hint)

    def _validate_decoder(self) -> None:
        check_choice("task.decoder", self.decoder)
        for key in ("channels", "auxiliary_channels"):
            at_least(f"task.{key}", getattr(self, key), 1)
        if not self.pool_sizes or not all(size >= 1 for size in self.pool_sizes):
            raise ConfigError("task.pool_sizes", self.pool_sizes, "must be sides of at least 1, such as [1,2,3,6]")
        if not 0 <= self.dropout < 1:
            fix = f"must be a fraction from 0 to below 1{percent(self.dropout)}"
            raise ConfigError("task.dropout", self.dropout, fix)

    def _validate_loss(self) -> None:
        for key in ("auxiliary_weight", "focal_gamma", "dice_weight"):
            at_least(f"task.{key}", getattr(self, key), 0)
        check_class_weights(self.class_weights, self.num_classes)

    def _validate_augmentation(self, config: Config) -> None:
        data, channels = config.data, config.model.in_channels
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                "task.scale", self.scale, "must be a pair [low, high] of factors above 0, low first, such as [0.5,2.0]"
            )
        share("task.max_class_share", self.max_class_share)
        if self.max_class_share == 0:
            raise ConfigError("task.max_class_share", 0.0, "no crop has less of every class; use 1 for no limit")
        if self.photometric and (data.scale is not None or channels != 3):
            found = f"model.in_channels={channels}" if data.scale is None else "data.scale makes them measured values"
            hint = f"changes the colors of images of 3 channels, but {found}: set task.photometric=false"
            raise ConfigError("task.photometric", True, hint)
        if data.augment.transform is not None:
            hint = "makes an image whose geometry the label map cannot follow: set data.augment.transform=null"
            raise ConfigError("data.augment.transform", data.augment.transform, hint)

    def doubts(self, config: Config) -> list[str]:
        """Return a warning for every setting that was probably not intended."""
        lines = without_effect(config.data, "segmentation", "scale")
        for key, usual in (("auxiliary_weight", 0.4), ("dice_weight", 1), ("focal_gamma", 2)):
            value = getattr(self, key)
            if value > _FAR_ABOVE:
                lines.append(f"task.{key}={value:g} is far above what is usual, {usual:g}")
        if self.ignore_index is not None and self.ignore_index < self.num_classes:
            lines.append(
                f"task.ignore_index={self.ignore_index} is one of the {self.num_classes} classes, which is then never "
                "learned or counted"
            )
        if config.engine.compile and self.inference != SLIDE and config.data.eval_shards:
            lines.append(
                "engine.compile=true compiles the blocks again for every size of image in an evaluation, for minutes; "
                "task.inference=slide evaluates in windows of one size"
            )
        return lines

    def describe(self, config: Config) -> Description:
        """Return classes, decoder, and augmentation, and the parameters with decoder and auxiliary decoder."""
        parts = [f"{self.num_classes} classes" if self.num_classes else "number of classes from the data"]
        width = "" if self.decoder == "linear" else f" of {self.channels} channels"
        parts.append(f"decoder {self.decoder}{width}")
        if self.auxiliary_weight:
            parts.append(f"auxiliary loss times {self.auxiliary_weight:g}")
        if self.dice_weight:
            parts.append(f"Dice times {self.dice_weight:g}")
        if self.focal_gamma:
            parts.append(f"focal loss {self.focal_gamma:g}")
        reference = "the short side" if self.resize == "short" else "the pixels"
        parts.append(f"{reference} scaled by {self.scale[0]:g} to {self.scale[1]:g}")
        if self.photometric:
            parts.append("photometric distortion")
        parts.append("whole images" if self.inference != SLIDE else f"windows that share {self.overlap:.0%}")
        parts[-1] += " in evaluation"
        size = resolution(config)
        head = head_parameters(stage_geometry(config.model, *size), self)
        return Description(", ".join(parts), "the decoder", count_parameters(config.model, size) + head)

    def head_macs(self, config: Config) -> int:
        """Return those of the decoder and the auxiliary decoder."""
        return head_macs(stage_geometry(config.model, *resolution(config)), self)

    def head_bytes(self, config: Config, element: int) -> int:
        """Return those of the decoder, the auxiliary decoder, and the loss, with the label map."""
        height, width = resolution(config)
        label = 1 if max(self.ignore_index or 0, self.num_classes - 1) <= HIGHEST_BYTE else 4
        return head_bytes(stage_geometry(config.model, height, width), self, element) + label * height * width

    def head_transient(self, config: Config, element: int, images: int) -> int:
        """Return those of the loss, which enlarges the logits in strips."""
        height, width = resolution(config)
        first = stage_geometry(config.model, height, width)[0]
        strip = min(STRIP_BYTES, 4 * images * self.num_classes * height * width)
        wide = 4 * images * self.num_classes * first.height * first.width
        # A strip, its logarithms, and a gradient; for Dice the probabilities, those that count, and gradients of both;
        # the gradient of all logits, and their fp32 copy.
        return (7 if self.dice_weight else 3) * strip + wide * (2 if element < 4 else 1)

    def open_fields(self) -> tuple[str, ...]:
        """Return the fields that the data still decides."""
        return (*super().open_fields(), *(("ignore_index",) if self.ignore_index is None else ()))

    def in_data(self, key: str, value: Any) -> str:
        """Return words for data that decide an open field."""
        return f"{value} for pixels without a class" if key == "ignore_index" else super().in_data(key, value)

    def complete(self, saved: Mapping[str, Any], card: Any) -> None:
        """Set the number of classes and the value of ignored pixels."""
        if self.label != SegmentationConfig.label:
            card = None  # it describes the label maps that swinv2-data packs, not another member
            if not (self.num_classes or saved.get("num_classes")):
                fix = f"no dataset card describes the member {self.label} (task.label); set the number of its classes"
                raise ConfigError("task.num_classes", 0, fix)
        super().complete(saved, card)
        if self.ignore_index is not None:
            return
        maps = card.label_maps if card is not None else None
        stored = saved.get("ignore_index") if maps is None else maps.ignore
        usual = HIGHEST_BYTE if self.num_classes <= HIGHEST_BYTE else HIGHEST_VALUE
        self.ignore_index = usual if stored is None else stored

    def for_evaluation(self, classes: int | None) -> SegmentationConfig:
        """Return this section with this number of classes and without class weights, which need the training data.

        Other classes have label maps of their own, so their ignored value is that of their card.
        """
        same = classes in (None, self.num_classes)
        classes, ignored = (self.num_classes, self.ignore_index) if same else (classes, None)
        return replace(self, num_classes=classes, ignore_index=ignored, class_weights=None)

    def fixed_crop(self, data: DataConfig) -> tuple[float, str]:
        """Return the crop of the center that keeps the aspect, and if it is square the scale of an evaluation."""
        return 1.0, "native" if self.resize == "native" else "center"

    def training_preparation(self, config: Config) -> list[tuple[str, str]]:
        """Return the random scale, relative to the size in evaluation, and the crop."""
        height, width = resolution(config)
        limit = f", at most {self.max_class_share:.4g} of one class" if self.max_class_share < 1 else ""
        low, high = self.scale
        return [
            ("random scale", f"{low:.4g} to {high:.4g} times the size in evaluation: {self._reference(config)}"),
            ("random crop", f"{height}x{width} pixels{limit}"),
        ]

    def _reference(self, config: Config) -> str:
        """Return the size of an image in evaluation, in words."""
        short = min(resolution(config))
        if self.resize == "short":
            return f"short side {short} pixels, longer side at most {round(self.max_aspect * short)}"
        return "in its own size"

    def preparation(self, config: Config) -> str:
        """Return the size of an image, and the windows, scales, and flips that are averaged."""
        size = resolution(config)
        parts = [self._reference(config)]
        if self.inference == SLIDE:
            parts.append(f"windows of {size[0]}x{size[1]} pixels that share {self.overlap:.0%}")
        else:
            parts.append("whole images")
        if self.test_scales != [1.0]:
            parts.append(f"scales {', '.join(f'{scale:g}' for scale in self.test_scales)}")
        if self.test_flip:
            parts.append("with mirrored images")
        return ", ".join(parts)

    def scaled_images(self, config: Config, factor: float) -> list[str] | None:
        """Return the scales of the test times a factor, if images keep their own size."""
        if self.resize != "native":
            return None
        return [f"task.test_scales=[{','.join(f'{factor * scale:.10g}' for scale in self.test_scales)}]"]

    def evaluation_settings(self) -> dict[str, Any]:
        """Return the size of the images and the kind of inference."""
        names = ("resize", "max_aspect", "inference", "overlap", "test_scales", "test_flip")
        return {name: getattr(self, name) for name in names}

    def label_options(self) -> tuple[str, ...]:
        """Return the label options of swinv2-eval that apply."""
        return ("label_map",)

    def worker_modules(self) -> list[str]:
        """Return the module of the transforms, which does not import the model."""
        return ["swinv2_train.tasks.segmentation.transform"]
