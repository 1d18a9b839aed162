"""Metrics against scikit-learn and by hand; batches, ranks and ties change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from swinv2_train.tasks.measured import add_sums
from swinv2_train.tasks.metrics import average_precisions, classification_metrics, classification_sums

N, K = 400, 12


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, K, (N,), generator=generator)
    logits = torch.randn(N, K, generator=generator) + 2 * F.one_hot(targets, K)
    return logits, targets, torch.rand(N, generator=generator) < 0.9


@pytest.mark.slow
def test_counts_and_losses_are_those_of_a_direct_count() -> None:
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

    logits, targets, valid = data()
    sums = classification_sums(logits, targets, valid)
    metrics = classification_metrics(sums)
    kept, truth = logits[valid].numpy(), targets[valid].numpy()
    labels = np.arange(K)
    assert metrics["samples"] == valid.sum()
    assert metrics["loss"] == pytest.approx(float(F.cross_entropy(logits[valid], targets[valid])), rel=1e-6)
    assert metrics["top1"] == pytest.approx(top_k_accuracy_score(truth, kept, k=1, labels=labels))
    assert metrics["top5"] == pytest.approx(top_k_accuracy_score(truth, kept, k=5, labels=labels))
    assert metrics["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(truth, kept.argmax(1)))
    assert (sums["confusion"] == confusion_matrix(truth, kept.argmax(1), labels=labels)).all()
    confidence = torch.from_numpy(kept).softmax(1).max(1).values.numpy()
    right = kept.argmax(1) == truth
    ece = 0.0
    for low in range(15):
        inside = (confidence * 15 >= low) & (confidence * 15 < low + 1)
        if inside.any():
            ece += inside.sum() * abs(confidence[inside].mean() - right[inside].mean())
    assert metrics["ece"] == pytest.approx(ece / valid.sum().item(), rel=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_sums_of_batches_are_the_sums_of_the_whole(multi_label: bool) -> None:
    logits, targets, valid = data()
    if multi_label:
        targets = F.one_hot(targets, K) | F.one_hot(targets.flip(0), K)
    whole = classification_sums(logits, targets, valid, multi_label)
    total: dict = {}
    for piece in torch.arange(N).split(37):
        total = add_sums(total, classification_sums(logits[piece], targets[piece], valid[piece], multi_label))
    assert total.keys() == whole.keys()
    for name in whole:
        np.testing.assert_allclose(total[name], whole[name], rtol=1e-12, err_msg=name)
        if name not in ("total", "calibration"):
            assert np.array_equal(total[name], whole[name]), name


def test_ties_and_numbers_that_are_not_finite_are_never_right_by_chance() -> None:
    everyone = torch.ones(3, dtype=torch.bool)
    tied = classification_sums(torch.zeros(3, 8), torch.tensor([0, 4, 7]), everyone)
    assert (tied["correct_1"], tied["correct_5"]) == (1, 2)
    bad = torch.zeros(3, 8)
    bad[0] = float("nan")
    bad[1, 3] = float("nan")
    bad[2, 2] = float("inf")
    sums = classification_sums(bad, torch.tensor([0, 0, 0]), everyone)
    assert (sums["correct_1"], sums["correct_5"]) == (0, 2)


def test_what_is_padded_does_not_count_whatever_it_holds() -> None:
    logits, targets, _ = data()
    logits[5], targets[5] = float("nan"), K + 50
    valid = torch.ones(N, dtype=torch.bool)
    valid[5] = False
    kept = torch.arange(N) != 5
    ours, plain = (
        classification_sums(logits, targets, valid),
        classification_sums(logits[kept], targets[kept], valid[kept]),
    )
    assert all(np.array_equal(ours[name], plain[name]) for name in plain)


def test_few_classes_have_no_top5_and_many_no_confusion() -> None:
    few = classification_sums(torch.randn(4, 5), torch.arange(4), torch.ones(4, dtype=torch.bool))
    assert "top5" not in classification_metrics(few)
    many = classification_sums(torch.randn(4, 1001), torch.arange(4), torch.ones(4, dtype=torch.bool))
    assert "confusion" not in many
    assert "top5" in classification_metrics(many)


def test_no_samples_are_nan_and_no_error() -> None:
    empty = torch.zeros(3, dtype=torch.bool)
    for multi_label, targets in ((False, torch.zeros(3).long()), (True, torch.zeros(3, K))):
        metrics = classification_metrics(classification_sums(torch.zeros(3, K), targets, empty, multi_label))
        assert metrics.pop("samples") == 0
        assert all(np.isnan(value) for value in metrics.values())


def test_several_labels_have_the_average_precision_and_f1_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, f1_score

    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(N, K, generator=generator) < 0.2
    truth[:, 3] = False
    logits = torch.randn(N, K, generator=generator) * 2 + truth * 1.5 - 1
    logits = (logits * 64).round() / 64 + 1 / 128  # the middles of the histogram's bins
    sums = classification_sums(logits, truth, torch.ones(N, dtype=torch.bool), multi_label=True)
    metrics = classification_metrics(sums)
    present = [k for k in range(K) if truth[:, k].any()]
    expected = [average_precision_score(truth[:, k].numpy(), logits[:, k].numpy()) for k in present]
    ours = average_precisions(np.asarray(sums["histograms"]))
    assert ours[present] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(ours[3])
    assert metrics["mAP"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert metrics["f1"] == pytest.approx(f1_score(truth.numpy(), (logits > 0).numpy(), average="micro"))
    assert metrics["loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, truth.float())), rel=1e-6)
