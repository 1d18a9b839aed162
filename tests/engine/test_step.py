"""A loss of several terms is the same for any ranks, micro-batches and accumulation, up to rounding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from swinv2_train.engine.step import forward_backward, summed_weights
from swinv2_train.tasks.task import NORMALISER_EPSILON, Losses, mean_loss

FACTORS = {"near": 1.0, "far": 0.25}


class TwoTerms:
    """Stands in for a task: a term over samples, and one over as many pixels as a sample says."""

    config = SimpleNamespace(task=SimpleNamespace(terms=lambda: FACTORS))

    def weights(self, batch: dict) -> dict[str, float]:
        return {"near": float(len(batch["x"])), "far": float(batch["pixels"].sum())}

    def loss(self, model: nn.Module, batch: dict) -> Losses:
        out = model(batch["x"])[:, 0]
        return Losses({"near": out.abs().sum(), "far": (batch["pixels"] * out.square()).sum()})


class PlainEngine:
    """Stands in for DeepSpeed: gradients add up over micro-batches."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.micro_steps = 0

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def micro_step(self) -> None:
        self.micro_steps += 1


def batches(world_size: int, rank: int, micro_batch: int) -> list[dict[str, torch.Tensor]]:
    """This rank's part of a global batch of 12."""
    generator = torch.Generator().manual_seed(0)
    x, pixels = torch.randn(12, 5, generator=generator), torch.arange(12.0)
    first, share = rank * 12 // world_size, 12 // world_size
    starts = range(first, first + share, micro_batch)
    return [{"x": x[start : start + micro_batch], "pixels": pixels[start : start + micro_batch]} for start in starts]


def step(world_size: int, micro_batch: int) -> tuple[dict[str, float], float, torch.Tensor]:
    """Terms, loss, and gradient of one step, with the mean over ranks that DeepSpeed takes."""
    task: Any = TwoTerms()
    parts = [batches(world_size, rank, micro_batch) for rank in range(world_size)]
    by_rank = [summed_weights(task, [task.weights(batch) for batch in own]) for own in parts]
    weights = [sum(values) for values in zip(*by_rank, strict=True)]
    terms, loss, gradients = dict.fromkeys(FACTORS, 0.0), 0.0, []
    for rank, own in enumerate(parts):
        torch.manual_seed(1)
        model = nn.Linear(5, 1)
        ranks: Any = SimpleNamespace(device=torch.device("cpu"), world_size=world_size, rank=rank)
        engine: Any = PlainEngine(model)
        sums = forward_backward(engine, task, own, weights, ranks)
        assert engine.micro_steps == len(own) - 1
        terms = {name: terms[name] + float(sums.terms[name]) for name in terms}
        loss += float(sums.loss)
        gradients.append(model.weight.grad)
    return terms, loss, torch.stack(gradients).mean(dim=0)


def test_ranks_and_micro_batches_change_nothing_but_rounding() -> None:
    terms, loss, gradient = step(1, 12)
    torch.manual_seed(1)
    model = nn.Linear(5, 1)
    (whole,) = batches(1, 0, 12)
    out = model(whole["x"])[:, 0]
    far = 0.25 * (whole["pixels"] * out.square()).sum() / (66 + NORMALISER_EPSILON)
    expected = out.abs().sum() / (12 + NORMALISER_EPSILON) + far
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert terms["far"] == pytest.approx(float(far.detach()), rel=1e-6)
    torch.testing.assert_close(gradient, model.weight.grad)
    for world_size, micro_batch in ((1, 3), (2, 6), (2, 2), (3, 1)):
        other_terms, other_loss, other_gradient = step(world_size, micro_batch)
        assert other_terms == pytest.approx(terms, rel=1e-6)
        assert other_loss == pytest.approx(sum(terms.values()), rel=1e-6)
        torch.testing.assert_close(other_gradient, gradient)


def test_the_loss_of_a_part_by_itself() -> None:
    task = TwoTerms()
    (one,) = batches(12, 4, 1)
    with torch.no_grad():
        terms = task.loss(nn.Linear(5, 1), one).terms
    expected = float(terms["near"]) + 0.25 * float(terms["far"]) / 4
    assert mean_loss(terms, task.weights(one), FACTORS) == pytest.approx(expected)
    assert mean_loss({"near": torch.tensor(3.0), "far": torch.tensor(0.0)}, {"near": 2.0, "far": 0.0}, FACTORS) == 1.5


def test_terms_that_the_config_does_not_have_are_a_mistake() -> None:
    task: Any = TwoTerms()
    task.loss = lambda model, batch: Losses.single(model(batch["x"]).sum())
    ranks: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1, rank=0)
    with pytest.raises(ValueError, match="the loss has the terms loss, and the config of the task near, far"):
        forward_backward(PlainEngine(nn.Linear(5, 1)), task, batches(1, 0, 12), [1.0, 1.0], ranks)  # type: ignore[arg-type]
