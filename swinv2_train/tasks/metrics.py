"""Classification metrics from logits: sums that add up over batches and ranks, and the metrics computed from them.

Every count is exact, so the result depends neither on the batches nor on the number of ranks. Fractions, such as an
accuracy, are from 0 to 1.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from swinv2_train.tasks.measured import Sums

CALIBRATION_BINS = 15
MOST_CONFUSION_CLASSES = 1000
"""Above this number of classes, no confusion matrix is kept."""
_SCORE_LIMIT = 16.0
_MOST_HISTOGRAM_CELLS = 1 << 21


def classification_sums(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, multi_label: bool = False
) -> Sums:
    """Return the contribution of one batch to an evaluation.

    Args:
        logits: (B, K), any float dtype and device.
        targets: (B,) class numbers; with `multi_label` (B, K), nonzero if an image has the class.
        valid: (B,) bool: the samples that count.

    Returns:
        `total` (summed cross-entropy, without label smoothing) and `samples`. One class per image: `correct_1`,
        `correct_5`, `class_samples` (K,), `class_correct` (K,), `calibration` (15, 3: samples, summed confidence,
        correct), and up to 1000 classes `confusion` (K, K; rows are the true classes). `multi_label`: `class_samples`,
        `class_predicted`, `class_correct` (K,) at a probability of 0.5, and `histograms` (K, bins, 2: images without
        and with the class) over the logit.
    """
    rows = valid.to("cpu", torch.bool)
    scores = logits.detach().to("cpu", torch.float32)[rows]
    truth = targets.to("cpu")[rows]
    if multi_label:
        return _multi_label_sums(scores, truth.to(torch.bool))
    return _single_label_sums(scores, truth.long())


def correct_samples(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> float:
    """Return the number of samples whose highest logit is that of their class, as in `classification_sums`."""
    rows = valid.to("cpu", torch.bool)
    ahead = _classes_ahead(logits.detach().to("cpu", torch.float32)[rows], targets.to("cpu")[rows].long())
    return float((ahead == 0).sum())


def classification_metrics(sums: Sums) -> dict[str, float]:
    """Return the metrics of the summed results of `classification_sums`.

    One class per image: `loss`, `top1`, `top5` (with more than 5 classes), `mean_class_accuracy` (over the classes that
    have samples), `ece` (expected calibration error, 15 bins of equal width, arXiv 1706.04599).

    Several classes: `loss` (binary cross-entropy, mean over samples and classes), `mAP` (average precision, mean over
    the classes that occur; logits in the same bin, 1/64 wide for up to 512 classes, count as tied), `f1` (over all
    decisions, at a probability of 0.5).

    Always `samples`. A metric without samples is nan.
    """
    samples = float(sums["samples"])
    metrics = {"loss": _ratio(float(sums["total"]), samples), "samples": samples}
    counts = np.asarray(sums["class_samples"])
    if "histograms" in sums:
        found = 2 * float(np.sum(sums["class_correct"]))
        metrics["mAP"] = float(_mean(average_precisions(np.asarray(sums["histograms"]))[counts > 0]))
        metrics["f1"] = _ratio(found, float(np.sum(sums["class_predicted"]) + np.sum(counts)))
        return metrics
    metrics["top1"] = _ratio(float(sums["correct_1"]), samples)
    if counts.size > 5:
        metrics["top5"] = _ratio(float(sums["correct_5"]), samples)
    metrics["mean_class_accuracy"] = float(_mean(class_accuracies(sums)[counts > 0]))
    bins = np.asarray(sums["calibration"])
    metrics["ece"] = _ratio(float(np.abs(bins[:, 1] - bins[:, 2]).sum()), samples)
    return metrics


def class_accuracies(sums: Sums) -> np.ndarray:
    """Return (K,) the fraction of each class's samples that are correct; nan for a class without samples."""
    counts, correct = np.asarray(sums["class_samples"]), np.asarray(sums["class_correct"])
    return np.divide(correct, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def average_precisions(histograms: np.ndarray) -> np.ndarray:
    """(K, bins, 2) histograms of the scores of images without and with a class -> (K,) average precision.

    It is the sum of precision times gain of recall, from the highest bin down; samples in the same bin count as tied.
    nan for a class without images.
    """
    found = np.cumsum(histograms[:, ::-1, 1], axis=1)
    taken = found + np.cumsum(histograms[:, ::-1, 0], axis=1)
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    gains = (precision * histograms[:, ::-1, 1]).sum(axis=1)
    return np.divide(gains, found[:, -1], out=np.full(gains.shape, np.nan), where=found[:, -1] > 0)


def _classes_ahead(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return (B,) the number of classes that rank before the true one."""
    own = scores.gather(1, truth[:, None])
    # Ties go to the lower class number, and non-finite scores are never correct, so no order of sums matters.
    earlier = torch.arange(scores.shape[1])[None] < truth[:, None]
    return (~(scores <= own) | ((scores == own) & earlier)).sum(dim=1)


def _single_label_sums(scores: torch.Tensor, truth: torch.Tensor) -> Sums:
    num_classes = scores.shape[1]
    losses = F.cross_entropy(scores, truth, reduction="none").double()
    ahead = _classes_ahead(scores, truth)
    right = (ahead == 0).numpy().astype(np.float64)
    confidence, predicted = (part.numpy() for part in scores.softmax(dim=1).double().max(dim=1))
    predicted = np.where(right > 0, truth.numpy(), predicted)
    bins = np.minimum((np.nan_to_num(confidence) * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    columns = (np.ones_like(confidence), confidence, right)
    sums: Sums = {
        "total": float(losses.sum()),
        "samples": float(len(truth)),
        "correct_1": float(right.sum()),
        "correct_5": float((ahead < 5).sum()),
        "class_samples": np.bincount(truth.numpy(), minlength=num_classes).astype(np.float64),
        "class_correct": np.bincount(truth.numpy(), right, minlength=num_classes),
        "calibration": np.stack([np.bincount(bins, column, CALIBRATION_BINS) for column in columns], axis=1),
    }
    if num_classes <= MOST_CONFUSION_CLASSES:
        cells = np.bincount(truth.numpy() * num_classes + predicted, minlength=num_classes**2)
        sums["confusion"] = cells.reshape(num_classes, num_classes).astype(np.float64)
    return sums


def _multi_label_sums(scores: torch.Tensor, truth: torch.Tensor) -> Sums:
    num_classes = scores.shape[1]
    losses = F.binary_cross_entropy_with_logits(scores, truth.float(), reduction="none").double().mean(dim=1)
    predicted = scores > 0
    num_bins = max(64, min(2048, _MOST_HISTOGRAM_CELLS // (2 * num_classes)))
    position = (scores.nan_to_num().clamp(-_SCORE_LIMIT, _SCORE_LIMIT) + _SCORE_LIMIT) / (2 * _SCORE_LIMIT)
    bins = (position * num_bins).long().clamp(max=num_bins - 1)
    cells = (torch.arange(num_classes) * num_bins + bins) * 2 + truth
    histograms = torch.bincount(cells.flatten(), minlength=num_classes * num_bins * 2)
    return {
        "total": float(losses.sum()),
        "samples": float(len(truth)),
        "class_samples": truth.sum(dim=0).double().numpy(),
        "class_predicted": predicted.sum(dim=0).double().numpy(),
        "class_correct": (predicted & truth).sum(dim=0).double().numpy(),
        "histograms": histograms.view(num_classes, num_bins, 2).double().numpy(),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
