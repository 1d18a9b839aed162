"""Loss of a segmenter: cross-entropy and Dice of the enlarged logits.

They are computed in strips of rows, and again in backward, so that the logits never exist at the size of the label map.
The strips follow each other in a fixed order, so a resumed run repeats every bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2_train.config.tasks.segmentation_head import STRIP_BYTES
from swinv2_train.models.geometry import Span
from swinv2_train.models.precision import at_least_float32
from swinv2_train.models.resizing import enlarge_logits

_SMALLEST = 1e-12
"""Least base of the focal factor, whose derivative is infinite at 0 for a gamma below 1."""


@dataclass(frozen=True, eq=False)
class PixelLoss:
    """Loss of labeled pixels. Ignored pixels add nothing; the weights of the terms count them, as in mmsegmentation."""

    ignore: int
    """Label of the pixels that do not count."""
    class_weights: Tensor | None = None
    """(K,) float32: factor of a pixel's cross-entropy by its class; None: 1."""
    focal_gamma: float = 0.0
    """The cross-entropy is multiplied by (1 - probability of the class) to this power (arXiv 1708.02002)."""
    strip_bytes: int = STRIP_BYTES
    """Bytes of the enlarged logits that exist at a time; a strip has at least one row."""

    def cross_entropy(self, logits: Tensor, labels: Tensor, stride: int) -> Tensor:
        """Return the cross-entropy, summed over the pixels: a scalar in at least float32.

        Args:
            logits: (B, K, h, w), one per `stride` pixels; the last ones may reach beyond the labels.
            labels: (B, H, W) integers from 0 to K - 1, or `ignore`.
        """
        return self._sums(self._summed_cross_entropy, logits, labels, stride)[0]

    def cross_entropy_and_dice(self, logits: Tensor, labels: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy, and the Dice loss, summed over images.

        The Dice loss of an image is 1 - 2 sum(p g) / (sum(p^2) + sum(g^2)) with probabilities p and truth g
        (arXiv 1606.04797), the mean over the classes in its label map; it is 0 if all of its pixels are ignored.
        """
        total, overlap, squares, truth = self._sums(self._all_sums, logits, labels, stride)
        present = truth > 0
        score = 2 * overlap / torch.where(present, squares + truth, 1)
        losses = torch.where(present, 1 - score, 0).sum(dim=1) / present.sum(dim=1).clamp(min=1)
        return total, losses.sum()

    def _sums(self, measure: _Measure, logits: Tensor, labels: Tensor, stride: int) -> tuple[Tensor, ...]:
        step = max(1, self.strip_bytes // (4 * logits.shape[0] * logits.shape[1] * labels.shape[2]))
        return _SummedStrips.apply(logits, labels, partial(_strip_sums, measure, stride), step)

    def _summed_cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor]:
        return (self._picked(logits.log_softmax(dim=1), labels).sum(),)

    def _all_sums(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Return the summed cross-entropy, and per image and class (B, K): probability of the class on its own pixels,
        squared probability on all that count, and number of pixels."""
        log_probabilities = logits.log_softmax(dim=1)
        probabilities = log_probabilities.exp()
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        counted = (labels != self.ignore)[:, None]
        own = (labels[:, None] == classes) & counted
        overlap = torch.where(own, probabilities, 0).sum(dim=(2, 3))
        squares = torch.where(counted, probabilities, 0).square().sum(dim=(2, 3))
        return self._picked(log_probabilities, labels).sum(), overlap, squares, own.sum(dim=(2, 3)).to(logits.dtype)

    def _picked(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of every pixel, (B, H, W)."""
        ignored = labels == self.ignore
        targets = labels.long().masked_fill(ignored, 0)
        chosen = log_probabilities.gather(1, targets[:, None])[:, 0]
        losses = -chosen
        if self.focal_gamma:
            losses = losses * (-chosen.expm1()).clamp(min=_SMALLEST) ** self.focal_gamma
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(losses)[targets]
        return losses.masked_fill(ignored, 0)


_Measure = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Logits (B, K, rows, W) and labels (B, rows, W) of a strip -> sums, which are added up over the strips."""


def _strip_sums(measure: _Measure, stride: int, logits: Tensor, labels: Tensor, rows: Span) -> tuple[Tensor, ...]:
    size = (labels.shape[1], labels.shape[2])
    return measure(enlarge_logits(logits, size, stride, rows), labels[:, rows[0] : rows[1]])


class _SummedStrips(torch.autograd.Function):
    """Sums over the strips of enlarged logits. Backward enlarges and measures every strip again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, labels: Tensor, strip_sums: Callable[..., tuple[Tensor, ...]], step: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, labels)
        ctx.strip_sums, ctx.step = strip_sums, step
        wide = logits.to(at_least_float32(logits.dtype))
        totals: tuple[Tensor, ...] = ()
        for rows in _strips(labels, step):
            parts = strip_sums(wide, labels, rows)
            totals = tuple(a + b for a, b in zip(totals, parts, strict=True)) if totals else parts
        return totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, labels = ctx.saved_tensors
        wide = logits.detach().to(at_least_float32(logits.dtype)).requires_grad_()
        total = torch.zeros_like(wide)
        for rows in _strips(labels, ctx.step):
            with torch.enable_grad():
                parts = ctx.strip_sums(wide, labels, rows)
            used = [(part, grad) for part, grad in zip(parts, gradients, strict=True) if part.requires_grad]
            outputs, outer = zip(*used, strict=True)
            total += torch.autograd.grad(outputs, wide, outer)[0]
        return total.to(logits.dtype), None, None, None


def _strips(labels: Tensor, step: int) -> Iterator[Span]:
    height = labels.shape[1]
    return ((first, min(first + step, height)) for first in range(0, height, step))
