"""Frozen features of images or clips for probes, `swinv2-features`, and the Python API, and their nearest neighbors.

`features` (B, D) is the mean over the tokens of the last stage, the input of a classifier's head. `stage1` to `stage4`
(B, C_i, H_i, W_i) are the maps of the stages: before patch merging, the last one after the final norm; of clips
(B, C_i, T_i, H_i, W_i).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.model import NUM_STAGES
from swinv2_train.config.schema import Config
from swinv2_train.config.validate import resolution
from swinv2_train.data.augment import eval_crop, normalise, normalise_clips
from swinv2_train.data.clip_input import center_clip
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.label_source import LabelSource
from swinv2_train.data.sample import Sample
from swinv2_train.data.samples import IMAGE, VIDEO, VIDEO_FACTS
from swinv2_train.data.transform import Transform
from swinv2_train.models.backbone import backbone_of
from swinv2_train.models.heads import mean_of_tokens

POOLED = "features"
"""Name of the pooled features."""
NO_LABEL = -1
"""Label of a sample without exactly one class."""
_SIMILARITIES = 1 << 26
"""Maximum number of similarities in memory at a time."""


def with_fixed_crop(config: Config) -> Config:
    """Return the config of a run with the crop that its finished weights have for features, see `source_config`."""
    crop_pct, crop_mode = config.task.fixed_crop(config.data)
    return replace(config, data=replace(config.data, crop_pct=crop_pct, crop_mode=crop_mode))


class EvalImages(Transform):
    """Evaluation crop of one size: the entry `image` (C, H, W) as decoded.

    For a model of clips, it is the clip in the middle of a video, (C, T, H, W).
    """

    def __init__(self, config: Config) -> None:
        self.size, self.data = resolution(config), config.data
        self.members = (VIDEO, VIDEO_FACTS) if config.data.frames else (IMAGE,)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        data = self.data
        if data.frames:
            return {"image": center_clip(sample.video, self.size, data)}
        return {"image": eval_crop(sample.image, self.size, data.crop_pct, data.crop_mode, data.augment.interpolation)}


class AnyImages(EvalImages):
    """Evaluation crop, labeled or not: the entries `image` and `label` int64, which is `NO_LABEL` without one class.

    Args:
        names: names of the classes, in the order of their numbers, for a `data.label` with names.
    """

    def __init__(self, config: Config, names: Sequence[str] | None = None) -> None:
        super().__init__(config)
        self.labels = LabelSource.of(config.data.label, names)
        self.members = (*self.members, *self.labels.members)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        try:
            labels = self.labels.read(sample.raw)
        except BrokenSample:
            labels = ()
        entries = super().__call__(sample, rng)
        return entries | {"label": torch.tensor(labels[0] if len(labels) == 1 else NO_LABEL)}


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images (B, C, H, W) or clips (B, C, T, H, W) of `EvalImages`, normalized float32."""
    return (normalise_clips if images.ndim == 5 else normalise)(images, mean, std)


def stage_name(stage: int) -> str:
    """Return the name of the map of a stage, counted from 1."""
    return f"stage{stage}"


@torch.no_grad()
def features_of(model: nn.Module, images: Tensor, stages: Sequence[int] = ()) -> dict[str, Tensor]:
    """Return `features`, and the maps of some stages, as float32 on the CPU.

    Nothing is masked, so the encoder of a SimMIM model sees complete images. Call this in evaluation mode.

    Args:
        model: a backbone, or any model that contains one, wrapped or not.
        images: (B, C, H, W), or clips (B, C, T, H, W), normalized, on the model's device.
        stages: numbers from 1 to 4.

    Raises:
        InputError: if the images do not fit the model.
        ValueError: for a stage that does not exist.
    """
    if wrong := [stage for stage in stages if not 1 <= stage <= NUM_STAGES]:
        raise ValueError(f"stage {wrong[0]} does not exist; use 1 to {NUM_STAGES}")
    maps = backbone_of(model)(images)
    found = {POOLED: mean_of_tokens(maps[-1])}
    found.update({stage_name(stage): maps[stage - 1].movedim(-1, 1) for stage in stages})
    return {name: value.float().cpu().contiguous() for name, value in found.items()}


def nearest(features: Tensor, queries: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Find the features with the largest cosine similarity to each query, in groups that bound the memory.

    Args:
        features: (N, D) float.
        queries: (Q, D).
        count: number of neighbors; limited to N.

    Yields:
        For each group: the numbers of its queries (q,), the similarities (q, count), largest first, and the numbers of
        the features (q, count).
    """
    features = F.normalize(features, dim=1)
    most = min(count, len(features))
    for rows in torch.arange(len(queries)).split(max(1, _SIMILARITIES // len(features))):
        similarity = F.normalize(queries[rows], dim=1) @ features.T
        yield rows, *similarity.topk(most, dim=1)
