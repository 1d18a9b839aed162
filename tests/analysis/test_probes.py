"""Probes find what can be told apart in features, the same for any number of ranks, and leave the model as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from swinv2_train.analysis.probes import Probe, _fits, knn_accuracy, linear_accuracy
from swinv2_train.config.schema import Config, ProbeConfig
from swinv2_train.interop.load import LoadedModel, load_model
from tests.engine.threads import on_ranks
from tests.evaluated import encoder, labelled_shards

Labelled = tuple[torch.Tensor, torch.Tensor]


def clouds(count: int, spread: float, seed: int) -> Labelled:
    """Three classes, numbered 2, 5 and 9, around the axes of a space of eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) % 3
    noise = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    return torch.eye(8, dtype=torch.float64)[kinds] + spread * noise, torch.tensor([2, 5, 9])[kinds]


def test_both_probes_tell_apart_what_lies_apart() -> None:
    train, test = clouds(60, 0.05, 0), clouds(30, 0.05, 1)
    assert knn_accuracy(train, test, 5) == 1.0
    assert linear_accuracy(train, test) == 1.0


def test_neither_probe_sees_what_is_not_there() -> None:
    train, test = clouds(300, 0.0, 0), clouds(300, 0.0, 1)
    noise = torch.randn(300, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    other = torch.randn(300, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert knn_accuracy((noise, train[1]), (other, test[1]), 20) < 0.5
    assert linear_accuracy((noise, train[1]), (other, test[1])) < 0.5


def test_a_vote_weights_its_neighbors_by_similarity() -> None:
    """A near neighbor outvotes two far ones: exp(1 / 0.07) against 2 exp(0.8 / 0.07)."""
    angles = torch.tensor([0.0, 0.6435, -0.6435], dtype=torch.float64)  # cosines 1, 0.8, 0.8
    train = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([1, 0, 0])
    query = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([1])
    assert knn_accuracy(train, query, 3) == 1.0
    far = torch.tensor([0.0, 0.05, -0.05], dtype=torch.float64)  # cosines 1, 0.9988, 0.9988
    train = torch.stack([far.cos(), far.sin()], dim=1), torch.tensor([1, 0, 0])
    assert knn_accuracy(train, query, 3) == 0.0
    assert knn_accuracy(train, query, 1) == 1.0


def test_a_linear_probe_is_a_logistic_regression() -> None:
    """Its objective is convex, so weights without a gradient are the one optimum, however they were found."""
    features, labels = clouds(60, 0.8, 4)
    numbers = labels.unique(return_inverse=True)[1]
    for penalty, found in zip([0.1, 0.01], _fits(features, numbers, 3, [0.1, 0.01]), strict=True):
        weights = found.clone().requires_grad_()
        logits = features @ weights[:-1] + weights[-1]
        objective = F.cross_entropy(logits, numbers) + penalty / 2 * weights[:-1].square().sum()
        (gradient,) = torch.autograd.grad(objective, weights)
        assert gradient.abs().max() < 1e-5
        assert found.abs().max() > 0.1


def test_features_that_do_not_vary_do_no_harm() -> None:
    train, test = clouds(60, 0.05, 0), clouds(30, 0.05, 1)
    flat = [torch.cat([features, torch.ones(len(features), 1)], dim=1) for features, _ in (train, test)]
    assert linear_accuracy((flat[0], train[1]), (flat[1], test[1])) == 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    labelled_shards(folder / "train", 23, 3, broken=(4,), seed=100)
    labelled_shards(folder / "test", 13, 3)
    encoder(folder / "encoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder / "encoder.safetensors")


def probe_config(loaded: LoadedModel, folder: Path, **probe: Any) -> Config:
    shards = {"shards": str(folder / "train"), "eval_shards": str(folder / "test")}
    return replace(loaded.config, probe=ProbeConfig(**shards, **probe), data=replace(loaded.config.data, num_workers=0))


@pytest.mark.slow
def test_any_number_of_ranks_scores_alike_and_leaves_the_mode(folder: Path, loaded: LoadedModel) -> None:
    config, warnings = probe_config(loaded, folder), []

    def measure(ranks: Any) -> dict[str, float]:
        options = {"mean": loaded.mean, "std": loaded.std, "micro_batch": 4, "warn": warnings.append}
        return Probe(config, ranks, **options).measure(loaded.model, 7)

    loaded.model.train()
    alone = on_ranks(1, measure)
    assert loaded.model.training
    loaded.model.eval()
    assert set(alone[0]) == {"probe/knn_top1", "probe/linear_top1"}
    assert warnings == [
        "probe at step 7: sample val-000000.tar/img00004 is skipped: jpeg: Unsupported marker type 0x20"
    ]
    assert on_ranks(3, measure) == alone * 3


def test_classes_that_are_never_learnt_are_spoken_of(folder: Path, loaded: LoadedModel) -> None:
    warnings: list[str] = []
    options = {"mean": loaded.mean, "std": loaded.std, "micro_batch": 8, "warn": warnings.append}
    config = probe_config(loaded, folder, max_samples=2, linear=False)
    replaced = replace(
        config, probe=replace(config.probe, eval_shards=config.probe.shards, shards=str(folder / "test"))
    )
    (scores,) = on_ranks(1, lambda ranks: Probe(replaced, ranks, **options).measure(loaded.model, None))
    assert set(scores) == {"probe/knn_top1"}
    assert warnings == []  # the first two samples of both have the classes 0 and 1
    labelled_shards(folder / "other", 3, 1, seed=7)
    replaced.probe.shards = str(folder / "other")
    on_ranks(1, lambda ranks: Probe(replaced, ranks, **options).measure(loaded.model, None))
    assert len(warnings) == 1
    assert "probe: 1 of 2 samples are of classes that none of the 2 samples it learns from has" in warnings[0]


def test_a_check_ends_a_probe(folder: Path, loaded: LoadedModel) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop() -> None:
        raise Stop

    options = {"mean": loaded.mean, "std": loaded.std, "micro_batch": 8, "warn": print, "check": stop}
    with pytest.raises(Stop):
        on_ranks(1, lambda ranks: Probe(probe_config(loaded, folder), ranks, **options).measure(loaded.model, 1))
    assert not loaded.model.training
