"""Head of a stage for boxes: class scores and offsets from the features of a box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swinv2_train.config.tasks.detection import DetectionConfig
from swinv2_train.config.tasks.detection_head import BOX_SIDE, CONVOLUTIONS
from swinv2_train.models.detection.layers import CLASS_STD, ClassOffsets, Convolution, Linear
from swinv2_train.models.necks import ConvNormAct
from swinv2_train.models.precision import at_least_float32

_BOX_STD = 0.001


class BoxHead(nn.Module):
    """Convolutions or a linear layer, a linear layer, and two linear outputs.

    The classes and the background have separate layers, so that the rows of the former are those of the classes.
    """

    def __init__(self, task: DetectionConfig, num_classes: int) -> None:
        super().__init__()
        hidden = task.box_hidden
        self.convs = nn.Sequential()
        self.linears = nn.Sequential(Linear(task.channels * BOX_SIDE**2, hidden), nn.ReLU(inplace=True))
        if task.box_head == "4conv1fc":
            for _ in range(CONVOLUTIONS):
                self.convs.extend(_convolution(task))
        else:
            self.linears.extend([Linear(hidden, hidden), nn.ReLU(inplace=True)])
        self.classes = Linear(hidden, num_classes, std=CLASS_STD)
        self.background = Linear(hidden, 1, std=CLASS_STD)
        self.boxes = Linear(hidden, 4, std=_BOX_STD) if task.class_agnostic else None
        self.class_boxes = None if task.class_agnostic else ClassOffsets(hidden, num_classes, _BOX_STD)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores and offsets in at least float32.

        Args:
            x: (R, C, 7, 7).

        Returns:
            Logits (R, K + 1), the background last; offsets (R, K, 4), or (R, 1, 4) if they do not depend on the class.
        """
        x = self.linears(self.convs(x).flatten(1))
        logits = torch.cat([self.classes(x), self.background(x)], dim=1)
        if self.class_boxes is not None:
            offsets = self.class_boxes(x)
        else:
            assert self.boxes is not None
            offsets = self.boxes(x)[:, None]
        wide = at_least_float32(x.dtype)
        return logits.to(wide), offsets.to(wide)


def _convolution(task: DetectionConfig) -> list[nn.Module]:
    if task.head_norm == "group":
        return [ConvNormAct(task.channels, task.channels, 3)]
    return [Convolution(task.channels, task.channels, 3), nn.ReLU(inplace=True)]


def chosen(offsets: Tensor, classes: Tensor) -> Tensor:
    """Return the offsets of one class per box: (R, K or 1, 4), (R,) -> (R, 4)."""
    index = torch.zeros_like(classes) if offsets.shape[1] == 1 else classes
    return offsets[torch.arange(len(offsets), device=offsets.device), index]
