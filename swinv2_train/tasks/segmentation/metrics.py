"""Metrics of a segmenter from the confusion of its pixels: sums that add up over images and ranks.

Intersections and unions are summed over the whole set before they are divided, so the number of ranks changes nothing.
Ignored pixels count nowhere. Fractions are from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swinv2_train.data.errors import DataError
from swinv2_train.tasks.measured import Sums
from swinv2_train.tasks.metrics import MOST_CONFUSION_CLASSES


class PixelCounts:
    """Pixels by true and by predicted class, counted on the device.

    Args:
        ignore: label of the pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore: int, device: torch.device) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.dense = num_classes <= MOST_CONFUSION_CLASSES
        self._counts = torch.zeros(num_classes**2 if self.dense else 3 * num_classes, dtype=torch.int64, device=device)
        self._ignored = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Count pixels.

        Args:
            truth, predicted: integers of the same shape.

        Raises:
            DataError: if a label is neither a class nor the ignored value.
        """
        counted = truth != self.ignore
        labels, classes = truth[counted].long(), predicted[counted].long()
        if labels.numel() and int(labels.max()) >= self.num_classes:
            raise DataError(
                f"a label map has the value {int(labels.max())}, but the classes are 0 to {self.num_classes - 1}, and "
                f"pixels that do not count have {self.ignore}: set task.num_classes or task.ignore_index"
            )
        self._ignored += truth.numel() - labels.numel()
        if self.dense:
            cells = labels * self.num_classes + classes
        else:
            right = labels[labels == classes]
            cells = torch.cat([labels, classes + self.num_classes, right + 2 * self.num_classes])
        self._counts += torch.bincount(cells, minlength=len(self._counts))

    def sums(self) -> Sums:
        """Return `class_pixels`, `class_predicted`, and `class_correct` (K,); `ignored`, the number of other pixels;
        and up to 1000 classes `confusion` (K, K), whose rows are the true classes."""
        counts = self._counts.double().cpu().numpy()
        sums: Sums = {"ignored": float(self._ignored)}
        if not self.dense:
            return sums | dict(zip(_VECTORS, counts.reshape(3, -1), strict=True))
        confusion = counts.reshape(self.num_classes, self.num_classes)
        vectors = (confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal().copy())
        return sums | dict(zip(_VECTORS, vectors, strict=True)) | {"confusion": confusion}


_VECTORS = ("class_pixels", "class_predicted", "class_correct")


@dataclass(frozen=True)
class ClassScores:
    """Scores of every class, (K,) float64 each; nan for a class without the pixels that a score is a fraction of."""

    pixels: np.ndarray
    """True pixels."""
    predicted: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(cls, sums: Sums) -> ClassScores:
        return cls(*(np.asarray(sums[name]) for name in _VECTORS))

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of the true and the predicted pixels."""
        return _ratio(self.correct, self.pixels + self.predicted - self.correct)

    @property
    def accuracy(self) -> np.ndarray:
        """Fraction of the true pixels that are predicted."""
        return _ratio(self.correct, self.pixels)

    @property
    def dice(self) -> np.ndarray:
        """Dice coefficient, the harmonic mean of precision and recall."""
        return _ratio(2 * self.correct, self.pixels + self.predicted)


def summed_cross_entropy(scores: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Return the cross-entropy, summed over the pixels that count: a float64 scalar.

    Args:
        scores: (K, H, W), whose softmax are the probabilities.
        labels: (H, W) integers.
    """
    ignored = labels == ignore
    targets = labels.long().masked_fill(ignored, 0)
    chosen = scores.log_softmax(dim=0).gather(0, targets[None])[0]
    return -chosen.masked_fill(ignored, 0).sum(dtype=torch.float64)


def segmentation_metrics(sums: Sums) -> dict[str, float]:
    """Return the metrics of the summed results.

    `miou` and `dice` are means over the classes that are true or predicted somewhere, `mean_accuracy` over those that
    are true somewhere; `pixel_accuracy` is that of all pixels. `loss` is the plain cross-entropy per pixel, without
    class weights and other terms. `samples` counts the images with at least one labeled pixel. Without any, all
    metrics are nan.

    Args:
        sums: those of `PixelCounts`, and `total` (summed cross-entropy) and `samples`.
    """
    scores = ClassScores.of(sums)
    pixels = scores.pixels.sum()
    return {
        "miou": _mean(scores.iou),
        "mean_accuracy": _mean(scores.accuracy),
        "pixel_accuracy": float(scores.correct.sum() / pixels) if pixels else float("nan"),
        "dice": _mean(scores.dice),
        "loss": float(sums["total"] / pixels) if pixels else float("nan"),
        "samples": float(sums["samples"]),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
