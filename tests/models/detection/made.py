"""Tiny detectors, objects, and plain references for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_train.config.model import ModelConfig
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.models import init_weights
from swinv2_train.models.detection import Bitmaps, Detector, Targets

TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window": 4}
SMALL: dict[str, Any] = {
    "masks": True, "channels": 8, "box_hidden": 16, "mask_channels": 8, "roi_samples": 12, "rpn_samples": 32,
    "proposals": 20, "test_proposals": 20, "anchor_scale": 4.0, "outside_anchors": True, "score_threshold": 0.0,
    "max_detections": 20,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"detector": "mask_rcnn", "box_head": "2fc", "box_loss": "smooth_l1"},
    "cascade": {"detector": "cascade"},
    "htc": {
        "detector": "htc", "class_agnostic": True, "box_loss": "smooth_l1", "semantic_classes": 5,
        "global_attention": True, "head_norm": "none",
    },
}  # fmt: skip
"""Settings of each detector, so that together they have every part."""
CANVAS = (64, 80)


def section(kind: str, **task: Any) -> DetectionConfig:
    return DetectionConfig(**{**SMALL, **KINDS[kind], **task})


def detector(kind: str, classes: int = 3, *, model: dict[str, Any] | None = None, **task: Any) -> Detector:
    """A tiny detector with the seed's weights."""
    built = Detector(ModelConfig(**{**TINY, **(model or {})}), section(kind, **task), classes)
    init_weights(built, torch.Generator().manual_seed(0))
    return built


def packed(masks: Sequence[np.ndarray], windows: Sequence[Sequence[int]]) -> Bitmaps:
    """Bitmaps of the canvas, each cut to its window."""
    parts = [
        np.packbits(mask[top:bottom, left:right].ravel().astype(np.uint8))
        for mask, (top, left, bottom, right) in zip(masks, windows, strict=True)
    ]
    bits = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return Bitmaps(torch.from_numpy(bits), torch.tensor(np.array(windows).reshape(-1, 4), dtype=torch.int64))


def objects(boxes: Sequence[Sequence[float]], classes: Sequence[int], crowd: Sequence[Sequence[float]] = ()) -> Targets:
    """Objects whose masks fill their boxes, as far as they are on the canvas."""
    masks, windows = [], []
    for left, top, right, bottom in boxes:
        window = [max(0, int(top)), max(0, int(left)), min(CANVAS[0], int(bottom)), min(CANVAS[1], int(right))]
        mask = np.zeros(CANVAS, np.uint8)
        mask[window[0] : window[2], window[1] : window[3]] = 1
        masks.append(mask)
        windows.append(window)
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(crowd, dtype=torch.float32).view(-1, 4),
        packed(masks, windows),
    )


def scenes() -> list[Targets]:
    """Images with several objects, one, one larger than the canvas, only a crowd, and none."""
    return [
        objects([[4, 6, 40, 44], [30, 10, 70, 60], [50, 40, 60, 50]], [0, 2, 1]),
        objects([[20, 20, 52, 50]], [1], crowd=[[0, 0, 20, 20]]),
        objects([[-20, -30, 120, 100]], [2]),
        objects([], [], crowd=[[8, 8, 60, 60]]),
        objects([], []),
    ]


SIZES = torch.tensor([[64, 80], [64, 60], [50, 80], [64, 80], [33, 47]])
"""Sizes of the images of `scenes` on the canvas."""


def random_boxes(count: int, generator: torch.Generator, size: float = 60.0) -> Tensor:
    """Boxes with sides of 2 to 42 pixels."""
    corners = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corners, corners + 2 + 40 * torch.rand(count, 2, generator=generator)], dim=1)


class LargestTensor(TorchDispatchMode):
    """The size of the largest new tensor of the operations that run."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        found = function(*arguments, **(keywords or {}))
        for each in found if isinstance(found, (list, tuple)) else [found]:
            if isinstance(each, Tensor) and not each._is_view():
                self.bytes = max(self.bytes, each.numel() * each.element_size())
        return found


def plain_overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return width * height / (area - width * height)
