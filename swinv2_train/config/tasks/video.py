"""Config section of video classification."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from swinv2_train.config.checks import resolution
from swinv2_train.config.data import DataConfig
from swinv2_train.config.errors import ConfigError, percent
from swinv2_train.config.tasks.base import ALWAYS, Description, Metric
from swinv2_train.config.tasks.classification import POLICY_MODULE, ClassificationConfig
from swinv2_train.text import counted

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config


CLIP_TOP1 = "clip_top1"
"""Metric of single views."""


@dataclass
class VideoConfig(ClassificationConfig):
    """Classification of videos by clips of `data.frames` frames. Defaults follow Video Swin on Kinetics-400."""

    IMPLEMENTATION = "swinv2_train.tasks.video.task:Video"
    METRICS: ClassVar[dict[str, Metric]] = {
        "top1": ClassificationConfig.METRICS["top1"],
        "top5": ClassificationConfig.METRICS["top5"],
        CLIP_TOP1: Metric("max", "top-1 accuracy of single views", share=True),
        **{name: each for name, each in ClassificationConfig.METRICS.items() if name not in ("top1", "top5")},
    }
    CLIPS = ALWAYS
    TITLE = "video classification"
    PURPOSE = "for video classification"
    FREE = ("module", "views", "hop")
    PREDICT_OPTIONS: ClassVar[dict[str, str]] = {"hop": "hop"}
    PREDICT_FOLDERS: ClassVar[dict[str, tuple[str, ...]]] = {"strips": (".jpg",)}

    name: str = "video"
    """Name of the task."""
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erase_prob: float = 0.0
    dropout: float = 0.5
    """Fraction of the pooled features that are dropped in training."""
    views: str = "1x1"
    """Clips times crops of a video in an evaluation, such as 4x3; the probabilities of all views are averaged.

    Clips are spread over the video. Crops are spread along the longer side of the frame, whose shorter side is
    `data.resolution / data.crop_pct`; a single one is the center.
    """

    hop: float = 0.0
    """Seconds from the start of a window to that of the next one in swinv2-predict; 0: half the span of a clip."""

    @property
    def view_counts(self) -> tuple[int, int]:
        """Clips of a video and crops of a clip in an evaluation.

        Raises:
            ConfigError: if `views` is not a product of them.
        """
        found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", str(self.views))
        if found is None:
            raise ConfigError("task.views", self.views, "must be clips times crops, such as 4x3")
        return int(found[1]), int(found[2])

    @property
    def eval_inputs(self) -> int:  # type: ignore[override]
        """Views of a video in an evaluation."""
        clips, crops = self.view_counts
        return clips * crops

    def metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics of an evaluation, other than the number of samples."""
        names = super().metrics()
        if self.multi_label:
            return names
        after = names.index("mean_class_accuracy")
        return (*names[:after], CLIP_TOP1, *names[after:])

    def validate(self, config: Config) -> None:
        """Check what classification checks, dropout, views, and the hop."""
        super().validate(config)
        self.check_prediction()
        if not 0 <= self.dropout < 1:
            fix = f"must be a fraction from 0 to below 1{percent(self.dropout)}"
            raise ConfigError("task.dropout", self.dropout, fix)
        self.check_evaluation(config)

    def check_prediction(self, given: Mapping[str, Any] | None = None) -> None:
        """Check the views and the hop of finished weights, see `TaskConfig.check_prediction`."""
        _ = self.view_counts
        if not 0 <= self.hop < math.inf:
            raise ConfigError("task.hop", self.hop, "must be a number of seconds of at least 0")

    def check_evaluation(self, config: Config) -> None:
        """Check that several crops can be taken."""
        if self.view_counts[1] > 1 and config.data.crop_mode != "center":
            hint = f"several crops need data.crop_mode=center, not {config.data.crop_mode}"
            raise ConfigError("task.views", self.views, hint)

    def describe(self, config: Config) -> Description:
        """Return clips, classes, and augmentation, and the parameters with the linear head."""
        found = super().describe(config)
        parts = [self._clip_words(config.data), found.words.replace("per image", "per video")]
        if self.dropout:
            parts.append(f"dropout {self.dropout:g}")
        return replace(found, words=", ".join([*parts, f"{self.views} views in evaluation"]))

    @staticmethod
    def _clip_words(data: DataConfig) -> str:
        return f"clips of {counted(data.frames, 'frame')} at stride {data.frame_stride}"

    def training_preparation(self, config: Config) -> list[tuple[str, str]]:
        """Return the clip and the crop."""
        return [("random clip", self._clip_words(config.data)), *super().training_preparation(config)]

    def preparation(self, config: Config) -> str:
        """Return the clips and crops that are averaged."""
        clips, crops = self.view_counts
        height, width = resolution(config)
        clip = f"{counted(config.data.frames, 'frame')} at stride {config.data.frame_stride}"
        crop = f"{counted(crops, 'crop')} of {height}x{width} pixels"
        if config.data.crop_mode == "center":
            crop += f" ({config.data.crop_pct:g} of the shorter side)"
        else:
            crop += f" ({config.data.crop_mode})"
        return f"{counted(clips, 'clip')} of {clip}, {crop}"

    def evaluation_settings(self) -> dict[str, Any]:
        """Return the views."""
        return {"views": self.views}

    def label_options(self) -> tuple[str, ...]:
        """Return the label options of swinv2-eval that apply."""
        return ("label_map",)

    def worker_modules(self) -> list[str]:
        """Return the module of the transforms, which does not import the model, and that of the augmentation if it is
        used."""
        return [
            "swinv2_train.tasks.video.transform",
            *([POLICY_MODULE] if self.auto_augment is not None else []),
        ]
