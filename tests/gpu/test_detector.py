"""Losses and detections of a detector on a GPU are those on a CPU, and a step in half precision is finite."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.models.detection.roi_align import roi_align
from tests.models.detection.made import KINDS, detector, scenes
from tests.models.detection.test_detector import inputs
from tests.models.detection.test_roi_align import boxes, level

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


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_repeat_bitwise(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all parameters, with many boxes that overlap. Fused attention, which global attention uses, may not repeat."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # as in a run
    model = detector(kind, global_attention=False, roi_samples=200, proposals=200).train().cuda()
    images, sizes, seeds, labels = (each.cuda() for each in inputs(5))
    targets = [each.to(torch.device("cuda")) for each in scenes()]
    passes = []
    for _ in range(3):
        model.zero_grad()
        sum(model(images, sizes, targets, seeds=seeds, semantic=labels).values()).backward()
        passes.append([parameter.grad.clone() for parameter in model.parameters()])
    for again in passes[1:]:
        assert all(torch.equal(one, other) for one, other in zip(passes[0], again, strict=True))


def test_gradients_of_roi_align_on_a_gpu_are_those_of_a_cpu() -> None:
    x, rois = level().requires_grad_(), boxes()
    expected = torch.autograd.grad(roi_align(x, rois, 7, 4).square().sum(), x)[0]
    x = x.detach().cuda().requires_grad_()
    found = [torch.autograd.grad(roi_align(x, rois.cuda(), 7, 4).square().sum(), x)[0] for _ in range(3)]
    torch.testing.assert_close(found[0].cpu(), expected, rtol=0, atol=1e-10)
    assert all(torch.equal(each, found[0]) for each in found)
