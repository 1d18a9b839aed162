"""Features of boxes: RoIAlign on the level of a feature pyramid that fits the size of the box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from swinv2_train.config.tasks.detection_head import BOX_SIDE, MASK_SIDE
from swinv2_train.models.detection.roi_align import roi_align
from swinv2_train.models.precision import at_least_float32

_FINEST = 14
"""Boxes up to twice this number of positions of the first level are pooled from it (arXiv 1612.03144)."""


def level_of(boxes: Tensor, levels: int, stride: int) -> Tensor:
    """Return the level of the pyramid that each box is pooled from: (N, 4) -> (N,) int64.

    Args:
        levels: number of levels.
        stride: pixels per position of the first level; each level has twice the stride of the one before.

    Boxes must be finite: others would have no level.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    scale = (sides[:, 0] * sides[:, 1]).sqrt()
    return (scale / (_FINEST * stride) + 1e-6).log2().floor().clamp(0, levels - 1).long()


@dataclass
class BoxFeatures:
    """Maps of a micro-batch from which the features of boxes are pooled. All are pooled in at least float32."""

    levels: Sequence[Tensor]
    """(B, C, H_i, W_i) of the pyramid that boxes are pooled from."""
    stride: int
    """Pixels per position of the first level."""
    semantic: Tensor | None = None
    """(B, C, H_1, W_1): features of the semantic branch, at the size of the second level."""
    dtype: torch.dtype = field(init=False)
    """That of the maps as given, and of the features."""

    def __post_init__(self) -> None:
        self.dtype = self.levels[0].dtype
        wide = at_least_float32(self.dtype)
        self.levels = [level.to(wide) for level in self.levels]
        self.semantic = None if self.semantic is None else self.semantic.to(wide)

    def of_boxes(self, boxes: Sequence[Tensor]) -> Tensor:
        """Return the features of the boxes of each image: (N_i, 4) -> (sum of N_i, C, 7, 7).

        Of no boxes at all, those of one box without area: a head runs in every step on all ranks.
        """
        rois = self._rois(boxes)
        x = self._pooled(rois, BOX_SIDE)
        if self.semantic is not None:
            x = x + self._semantic(rois).unflatten(3, (BOX_SIDE, -1)).unflatten(2, (BOX_SIDE, -1)).mean((3, 5))
        return x.to(self.dtype)

    def of_masks(self, boxes: Sequence[Tensor]) -> Tensor:
        """Return the features of the boxes for mask heads, as above: (sum of N_i, C, 14, 14)."""
        rois = self._rois(boxes)
        x = self._pooled(rois, MASK_SIDE)
        return (x if self.semantic is None else x + self._semantic(rois)).to(self.dtype)

    def _rois(self, boxes: Sequence[Tensor]) -> Tensor:
        """Return (R, 5): image and box."""
        rois = torch.cat([torch.cat([torch.full_like(each[:, :1], n), each], 1) for n, each in enumerate(boxes)])
        return (rois if len(rois) else rois.new_zeros(1, 5)).to(self.levels[0].dtype)

    def _pooled(self, rois: Tensor, side: int) -> Tensor:
        levels = level_of(rois[:, 1:], len(self.levels), self.stride)
        order, parts = [], []
        for number, level in enumerate(self.levels):
            places = (levels == number).nonzero().flatten()
            order.append(places)
            parts.append(roi_align(level, rois[places], side, self.stride * 2**number))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _semantic(self, rois: Tensor) -> Tensor:
        assert self.semantic is not None
        return roi_align(self.semantic, rois, MASK_SIDE, 2 * self.stride)
