"""Head of a stage for masks, and the targets of its loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from swinv2_train.config.tasks.detection import HTC, DetectionConfig
from swinv2_train.config.tasks.detection_head import CONVOLUTIONS, MASK_SIDE
from swinv2_train.models.detection.layers import CLASS_STD, Convolution, Upsampling
from swinv2_train.models.detection.structures import Bitmaps
from swinv2_train.models.precision import at_least_float32

SIDE = 2 * MASK_SIDE
"""Side of a predicted mask."""
_THRESHOLD = 0.5


class MaskHead(nn.Module):
    """Four convolutions, an upsampling, and a mask per class.

    Args:
        reads_former: True for a head that adds the features of the head before it to its input (HTC).
    """

    def __init__(self, task: DetectionConfig, num_classes: int, *, reads_former: bool) -> None:
        super().__init__()
        width = task.mask_channels
        self.former = Convolution(width, task.channels, 1) if reads_former else None
        self.convs = nn.Sequential()
        for number in range(CONVOLUTIONS):
            self.convs.extend([Convolution(width if number else task.channels, width, 3), nn.ReLU(inplace=True)])
        self.upsampling = Upsampling(width)
        self.classes = Convolution(width, num_classes, 1, std=CLASS_STD)

    def features(self, x: Tensor, former: Tensor | None) -> Tensor:
        """Return the map before the upsampling: (R, C, 14, 14) -> (R, width, 14, 14)."""
        if self.former is not None and former is not None:
            x = x + F.relu(self.former(former), inplace=True)
        return self.convs(x)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (R, K, 28, 28) for a map of `features`."""
        return self.classes(F.relu(self.upsampling(features), inplace=True))


class MaskHeads(nn.ModuleList):
    """The mask heads of all stages."""

    def __init__(self, task: DetectionConfig, num_classes: int) -> None:
        flows = task.detector == HTC
        super().__init__(MaskHead(task, num_classes, reads_former=flows and stage > 0) for stage in range(task.stages))
        self.flows = flows

    def of_stage(self, x: Tensor, stage: int, classes: Tensor) -> Tensor:
        """Return the logits of a stage for one class per box, (R, 28, 28) in at least float32.

        In HTC, the heads of the stages before compute features of the same x, which flow into the head.

        Args:
            x: (R, C, 14, 14).
            classes: (R,) int64.
        """
        former = None
        for number in range(0 if self.flows else stage, stage + 1):
            former = self[number].features(x, former)
        assert former is not None
        return _of_class(self[stage].logits(former), classes)

    def probabilities(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return the mean over the stages of the probabilities of one class per box, (R, 28, 28)."""
        former, masks = None, []
        for head in self:
            former = head.features(x, former if self.flows else None)
            masks.append(_of_class(head.logits(former), classes).sigmoid())
        return torch.stack(masks).mean(dim=0)


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    found = logits[torch.arange(len(classes), device=classes.device), classes]
    return found.to(at_least_float32(logits.dtype))


def mask_targets(masks: Bitmaps, objects: Tensor, boxes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return the part of an object's bitmap inside of each box, resized by RoIAlign: (P, 28, 28) float of 0 and 1.

    Each bitmap is read in its own window, with the values of the bitmap of the entire canvas.

    Args:
        objects: (P,) int64: index of the object of each box.
        boxes: (P, 4).
        canvas: height and width.
    """
    targets = boxes.new_zeros(len(boxes), SIDE, SIDE)
    present, windows = objects.unique().tolist(), masks.windows.tolist()
    for index, bitmap in zip(present, masks.unpacked(present), strict=True):
        places = (objects == index).nonzero().flatten()
        framed, origin = _framed(bitmap, windows[index], canvas)
        moved = boxes[places] - boxes.new_tensor([*origin, *origin])
        rois = torch.cat([torch.zeros_like(moved[:, :1]), moved], dim=1)
        values = roi_align(framed.to(boxes.dtype)[None, None], rois, SIDE, 1.0, 0, aligned=True)
        targets[places] = (values[:, 0] >= _THRESHOLD).to(targets.dtype)
    return targets


def _framed(bitmap: Tensor, window: list[int], canvas: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Add a frame of zeros, except where the window ends with the canvas, and return it with its left and top.

    Beyond the sides of a map, RoIAlign repeats its last pixels.
    """
    top, left, bottom, right = window
    frame = (int(left > 0), int(right < canvas[1]), int(top > 0), int(bottom < canvas[0]))
    return F.pad(bitmap, frame), (left - frame[0], top - frame[2])
