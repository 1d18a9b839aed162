"""Semantic branch of HTC (arXiv 1901.07518): the class of every position, and features that the heads add to theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.tasks.detection import DetectionConfig
from swinv2_train.config.tasks.detection_head import CONVOLUTIONS
from swinv2_train.models.detection.layers import CLASS_STD, Convolution
from swinv2_train.models.precision import at_least_float32
from swinv2_train.models.resizing import resize_corners

_LEVEL = 1
"""Index of the level at whose size the branch works."""
IGNORED = 255
"""Value of pixels without a class."""


class SemanticBranch(nn.Module):
    """All levels of the pyramid at the size of the second one, summed, and convolutions.

    Args:
        levels: number of levels of the pyramid.
        stride: pixels per position of the second level.
    """

    def __init__(self, task: DetectionConfig, levels: int, stride: int) -> None:
        super().__init__()
        width, self.stride = task.channels, stride
        self.laterals = nn.ModuleList(Convolution(width, width, 1) for _ in range(levels))
        self.convs = nn.Sequential()
        for _ in range(CONVOLUTIONS):
            self.convs.extend([Convolution(width, width, 3), nn.ReLU(inplace=True)])
        self.embedding = Convolution(width, width, 1)
        self.classifier = Convolution(width, task.semantic_classes, 1, std=CLASS_STD)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features (B, C, H_2, W_2) for the heads, and logits (B, classes, H_2, W_2)."""
        size = (levels[_LEVEL].shape[2], levels[_LEVEL].shape[3])
        total: Tensor | None = None
        for lateral, level in zip(self.laterals, levels, strict=True):
            x = resize_corners(F.relu(lateral(level), inplace=True), size)
            total = x if total is None else total + x
        x = self.convs(total)
        return F.relu(self.embedding(x), inplace=True), self.classifier(x)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over the images of the mean cross-entropy of the positions with a class.

        Args:
            logits: (B, classes, h, w).
            labels: (B, H, W) integers, class numbers of the pixels of the canvas; `IGNORED` for none. Each position
                has the class of the pixel at its center.
        """
        rows, columns = (
            (torch.arange(side, device=labels.device) * self.stride + self.stride // 2).clamp(max=most - 1)
            for side, most in zip(logits.shape[2:], labels.shape[1:], strict=True)
        )
        small = labels[:, rows[:, None], columns].long()
        wide = logits.to(at_least_float32(logits.dtype))
        each = F.cross_entropy(wide, small, ignore_index=IGNORED, reduction="none").flatten(1).sum(dim=1)
        return (each / (small != IGNORED).flatten(1).sum(dim=1).clamp(min=1)).sum()
