"""Decoders: the maps of the four stages, (B, C_i, H_i, W_i) after their norms, to logits at the size of the first.

Each has a `classifier` with one row per class. The factors of the channels before it (see `channel_dropout.py`) are
(B, `dropped`), None for none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks.segmentation import SegmentationConfig
from swinv2_train.models.channel_dropout import drop_channels
from swinv2_train.models.init import draw_normal
from swinv2_train.models.necks import ConvNormAct, FeaturePyramid, PyramidPooling, at_largest

_CLASSIFIER_STD = 0.01


class Classifier(nn.Conv2d):
    """1x1 convolution to the classes, which starts near 0: normal with standard deviation 0.01 (mmsegmentation)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes, 1)

    def init_parameters(self, generator: torch.Generator | None) -> None:
        """Set the initial values, see `init_weights`."""
        draw_normal(self.weight, generator, _CLASSIFIER_STD)
        assert self.bias is not None
        self.bias.zero_()


class StageClassifier(Classifier):
    """1x1 convolution on the joined maps of all stages, resized to the first.

    It is applied to every stage before the resizing, which commutes with it: only the classes are resized, and the
    joined maps never exist.
    """

    def __init__(self, dims: Sequence[int], num_classes: int) -> None:
        super().__init__(sum(dims), num_classes)
        self.dims = list(dims)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """(B, C_i, H_i, W_i) of every stage -> (B, num_classes, H_1, W_1)."""
        weights = self.weight.split(self.dims, dim=1)
        parts = at_largest([F.conv2d(x, weight) for x, weight in zip(maps, weights, strict=True)])
        assert self.bias is not None
        return sum(parts[1:], parts[0]) + self.bias[:, None, None]


class UPerNet(nn.Module):
    """UPerNet (arXiv 1807.10221) as in Swin's segmentation code, with GroupNorm for BatchNorm.

    Pyramid pooling on the last stage is the top of a feature pyramid, whose levels are resized to the first, joined,
    and fused.
    """

    def __init__(self, task: SegmentationConfig, dims: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.dropped = task.channels
        self.pooling = PyramidPooling(dims[-1], task.channels, task.pool_sizes)
        self.pyramid = FeaturePyramid(dims[:-1], task.channels)
        self.fusion = ConvNormAct(len(dims) * task.channels, task.channels, 3)
        self.classifier = Classifier(task.channels, num_classes)

    def forward(self, maps: Sequence[Tensor], factors: Tensor | None) -> Tensor:
        """Return the logits (B, num_classes, H_1, W_1)."""
        levels = at_largest(self.pyramid(maps[:-1], self.pooling(maps[-1])))
        return self.classifier(drop_channels(self.fusion(torch.cat(levels, dim=1)), factors))


class PyramidSum(nn.Module):
    """A feature pyramid whose levels are resized to the first and added, as in semantic FPN (arXiv 1901.02446)."""

    def __init__(self, task: SegmentationConfig, dims: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.dropped = task.channels
        self.top = ConvNormAct(dims[-1], task.channels, 1)
        self.pyramid = FeaturePyramid(dims[:-1], task.channels)
        self.classifier = Classifier(task.channels, num_classes)

    def forward(self, maps: Sequence[Tensor], factors: Tensor | None) -> Tensor:
        """Return the logits (B, num_classes, H_1, W_1)."""
        levels = at_largest(self.pyramid(maps[:-1], self.top(maps[-1])))
        return self.classifier(drop_channels(sum(levels[1:], levels[0]), factors))


class Linear(nn.Module):
    """One linear layer on the maps of all stages: a probe of dense features."""

    def __init__(self, task: SegmentationConfig, dims: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.dropped = sum(dims)
        self.classifier = StageClassifier(dims, num_classes)

    def forward(self, maps: Sequence[Tensor], factors: Tensor | None) -> Tensor:
        """Return the logits (B, num_classes, H_1, W_1)."""
        parts = [None] * len(maps) if factors is None else factors.split(self.classifier.dims, dim=1)
        return self.classifier([drop_channels(x, part) for x, part in zip(maps, parts, strict=True)])


class Auxiliary(nn.Module):
    """A small decoder on one stage, whose loss helps to train the backbone (FCN, arXiv 1411.4038)."""

    def __init__(self, task: SegmentationConfig, dim: int, num_classes: int) -> None:
        super().__init__()
        self.dropped = task.auxiliary_channels
        self.conv = ConvNormAct(dim, task.auxiliary_channels, 3)
        self.classifier = Classifier(task.auxiliary_channels, num_classes)

    def forward(self, x: Tensor, factors: Tensor | None) -> Tensor:
        """(B, dim, H, W) -> (B, num_classes, H, W)."""
        return self.classifier(drop_channels(self.conv(x), factors))


DECODERS: dict[str, type[UPerNet | PyramidSum | Linear]] = {"upernet": UPerNet, "fpn": PyramidSum, "linear": Linear}
"""By `task.decoder`."""


def build_decoder(task: SegmentationConfig, dims: Sequence[int], num_classes: int) -> UPerNet | PyramidSum | Linear:
    """Return the decoder of a task.

    Args:
        dims: channels of the four stages.

    Raises:
        ConfigError: for a decoder that does not exist.
    """
    if task.decoder not in DECODERS:
        raise ConfigError("task.decoder", task.decoder, f"must be one of {', '.join(DECODERS)}")
    return DECODERS[task.decoder](task, dims, num_classes)
