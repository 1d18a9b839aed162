"""Losses and detections of a detector on a GPU are those on a CPU, and a step in half precision is finite."""

from __future__ import annotations

import pytest
import torch

from tests.models.detection.made import KINDS, detector, scenes
from tests.models.detection.test_detector import inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_the_same_as_a_cpu(kind: str) -> None:
    """In float64, so that rounding changes no sample."""
    model = detector(kind, score_threshold=0.2).double()
    images, sizes, seeds, labels = inputs(5)
    images = images.double()
    model.train()
    with torch.no_grad():
        expected = model(images, sizes, scenes(), seeds=seeds, semantic=labels)
        found = model.eval()(images, sizes)
        model.to("cuda").train()
        images, sizes, seeds, labels = (each.cuda() for each in (images, sizes, seeds, labels))
        targets = [each.to(torch.device("cuda")) for each in scenes()]
        terms = model(images, sizes, targets, seeds=seeds, semantic=labels)
        for name, term in terms.items():
            assert term.item() == pytest.approx(expected[name].item(), rel=1e-6), name
        for mine, theirs in zip(model.eval()(images, sizes), found, strict=True):
            assert mine.classes.tolist() == theirs.classes.tolist()
            for part in ("boxes", "scores", "masks"):
                torch.testing.assert_close(getattr(mine, part).cpu(), getattr(theirs, part), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_in_half_precision_is_finite(kind: str, autocast: bool) -> None:
    model = detector(kind).train().to("cuda", torch.float32 if autocast else torch.bfloat16)
    images, sizes, seeds, labels = (each.cuda() for each in inputs(5))
    targets = [each.to(torch.device("cuda")) for each in scenes()]
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        terms = model(images, sizes, targets, seeds=seeds, semantic=labels)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
