"""Region proposal network (arXiv 1506.01497): boxes that may contain an object, of any class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.tasks.detection import RPN_BOX, RPN_CLASS, DetectionConfig
from swinv2_train.models.detection.anchors import anchors_of, base_anchors, usable
from swinv2_train.models.detection.boxes import clip, decode, encode
from swinv2_train.models.detection.layers import Convolution
from swinv2_train.models.detection.matching import match, without_crowd
from swinv2_train.models.detection.sampling import candidate_noise, sample
from swinv2_train.models.detection.structures import Targets
from swinv2_train.models.detection.suppression import decreasing, suppress
from swinv2_train.models.precision import at_least_float32

_STD = 0.01
_HIGH, _LOW = 0.7, 0.3
"""Overlaps (IoU) from which an anchor is an object, and below which it is background."""
_POSITIVE_SHARE = 0.5
_NMS = 0.7
_BETA = 1 / 9
"""Absolute error at which the smooth L1 loss becomes linear."""
_DEVIATIONS = (1.0, 1.0, 1.0, 1.0)
DRAW = 0
"""Number of the draw of anchors in `candidate_noise`."""


class Predicted(NamedTuple):
    """Output of the network, with the anchors of all levels end to end.

    It is a tuple, because ZeRO-3 finds the tensors in the output of a module only in tuples, lists, and dicts.
    """

    anchors: Tensor
    """(A, 4)."""
    counts: list[int]
    """Anchors per level."""
    logits: Tensor
    """(B, A), at least float32."""
    offsets: Tensor
    """(B, A, 4), at least float32."""


class ProposalNetwork(nn.Module):
    """Scores and boxes for every anchor, and the proposals that are made of them.

    Args:
        stride: pixels per position of the first level; each level has twice the stride of the one before.
    """

    def __init__(self, task: DetectionConfig, stride: int) -> None:
        super().__init__()
        self.task, self.stride = task, stride
        anchors = len(task.anchor_ratios)
        self.conv = Convolution(task.channels, task.channels, 3, std=_STD)
        self.objectness = Convolution(task.channels, anchors, 1, std=_STD)
        self.offsets = Convolution(task.channels, 4 * anchors, 1, std=_STD)

    def forward(self, levels: Sequence[Tensor]) -> Predicted:
        """Return the predictions for the levels (B, C, H_i, W_i) of the pyramid."""
        logits, offsets, anchors = [], [], []
        for number, level in enumerate(levels):
            x = F.relu(self.conv(level), inplace=True)
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            offsets.append(self.offsets(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
            stride = self.stride * 2**number
            base = base_anchors(self.task.anchor_scale * stride, self.task.anchor_ratios).to(level.device)
            anchors.append(anchors_of((level.shape[2], level.shape[3]), stride, base))
        wide = at_least_float32(logits[0].dtype)
        return Predicted(
            torch.cat(anchors),
            [len(each) for each in anchors],
            torch.cat([each.to(wide) for each in logits], dim=1),
            torch.cat([each.to(wide) for each in offsets], dim=1),
        )

    def losses(self, found: Predicted, targets: Sequence[Targets], sizes: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """Return both terms of the loss, summed over the images.

        Each image's part is divided by the configured number of samples, even if it has fewer.

        Args:
            sizes: (B, 2): height and width of the images.
            seeds: (B,) int64, of the samples.
        """
        task, totals = self.task, {RPN_CLASS: found.logits.new_zeros(()), RPN_BOX: found.logits.new_zeros(())}
        for logits, offsets, target, size, seed in zip(found.logits, found.offsets, targets, sizes, seeds, strict=True):
            places = usable(found.anchors, size, outside=task.outside_anchors).nonzero().flatten()
            anchors = found.anchors[places]
            matched = match(anchors, target.boxes, _HIGH, _LOW, best_from=_LOW)
            if task.ignore_crowd:
                matched = without_crowd(matched, anchors, target.crowd)
            noise = candidate_noise(seed, DRAW, len(logits))[places]
            positives, negatives = sample(matched, noise, task.rpn_samples, _POSITIVE_SHARE)
            chosen = places[torch.cat([positives, negatives])]
            wanted = torch.zeros_like(logits[chosen])
            wanted[: len(positives)] = 1
            scored = F.binary_cross_entropy_with_logits(logits[chosen], wanted, reduction="sum")
            goal = encode(anchors[positives], target.boxes[matched[positives]], _DEVIATIONS)
            moved = F.smooth_l1_loss(offsets[places[positives]], goal.to(offsets.dtype), reduction="sum", beta=_BETA)
            totals[RPN_CLASS] = totals[RPN_CLASS] + scored / task.rpn_samples
            totals[RPN_BOX] = totals[RPN_BOX] + moved / task.rpn_samples
        return totals

    @torch.no_grad()
    def proposals(self, found: Predicted, sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the proposals of each image, from the best to the worst: boxes (P, 4) and scores (P,).

        Per level the best are kept, clipped to the image, and suppressed; then the best of all levels.
        """
        most = self.task.proposals if self.training else self.task.test_proposals
        result = []
        for logits, offsets, size in zip(found.logits, found.offsets, sizes, strict=True):
            boxes, scores, first = [], [], 0
            for count in found.counts:
                level = slice(first, first + count)
                first += count
                order = decreasing(logits[level])[:most]
                moved = clip(decode(found.anchors[level][order], offsets[level][order], _DEVIATIONS), size)
                order = order[valid := (moved[:, 2:] > moved[:, :2]).all(dim=1)]
                kept = suppress(moved[valid], torch.zeros_like(order), _NMS)
                boxes.append(moved[valid][kept])
                scores.append(logits[level][order][kept])
            score = torch.cat(scores)
            order = decreasing(score)[:most]
            result.append((torch.cat(boxes)[order], score[order].sigmoid()))
        return result
