"""Samples of video classification: a random clip in training, several views of the video in evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import VideoConfig
from swinv2_train.data.augment import random_erase
from swinv2_train.data.clip_input import fixed_views, random_clip
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import VIDEO, VIDEO_FACTS
from swinv2_train.tasks.classification import ClassificationTransform


class VideoTransform(ClassificationTransform):
    """Clip, crop, flip, colors, erasing, and mixing in training. The entries of a batch are those of classification,
    but `image` is (3, T, H, W) uint8, and in evaluation (views, 3, T, H, W), see `fixed_views`.

    Everything that is drawn applies to all frames of a clip.
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
        assert isinstance(config.task, VideoConfig)
        super().__init__(config, mean, std, training=training, names=names)
        self.members = (VIDEO, VIDEO_FACTS, *self.labels.members)
        self.view_counts = config.task.view_counts
        self.on_host = () if training else ("image",)  # all views of a video may need more memory than a micro-batch

    def read(self, sample: Sample, rng: np.random.Generator) -> Tensor:
        if self.training:
            return random_clip(sample, self.size, self.data, rng)
        return fixed_views(sample, self.size, self.data, self.view_counts)

    def augmented(self, image: Tensor, rng: np.random.Generator, name: str) -> Tensor:
        clip = self.colours.clip(image, rng, name)
        return random_erase(clip, self.task.erase_prob, self.mean, self.std, rng)
