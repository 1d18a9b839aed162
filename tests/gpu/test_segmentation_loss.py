"""The loss of a segmenter on a GPU: the values of the CPU, the same bits every time, and no logits at full size."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.tasks.segmentation.loss import PixelLoss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CLASSES, SIDE = 150, 640


def test_values_bits_and_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, SIDE // 4, SIDE // 4, generator=generator).bfloat16()
    labels = torch.randint(0, CLASSES, (2, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels[:, :100] = 255

    def measured(device: str) -> list[torch.Tensor]:
        maps = logits.to(device).requires_grad_()
        rule = PixelLoss(255, torch.linspace(0.5, 2, CLASSES, device=device), focal_gamma=2.0)
        terms = rule.cross_entropy_and_dice(maps, labels.to(device), 4)
        (terms[0] / labels.numel() + terms[1]).backward()
        assert maps.grad is not None
        return [*(term.detach() for term in terms), maps.grad]

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    first = measured("cuda")
    peak = torch.cuda.max_memory_allocated() - before
    whole = 2 * CLASSES * SIDE**2 * 4
    assert peak < 2 * whole  # the plain formula keeps at least the logits, their softmax, and a gradient
    assert all(torch.equal(a, b) for a, b in zip(first, measured("cuda"), strict=True))
    for found, expected in zip(first, measured("cpu"), strict=True):
        torch.testing.assert_close(found.cpu().float(), expected.float(), rtol=1e-2, atol=1e-6)
