"""Attention in time on a GPU: masks of -inf in the fused kernels, and gradients that are the same bits every time."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.model import ATTENTION_BACKENDS, ModelConfig
from swinv2_train.models import ImageClassifier, drop_path_noise, init_weights
from swinv2_train.models.channel_dropout import channel_noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def classifier(backend: str, dtype: torch.dtype) -> ImageClassifier:
    """Windows of 6 x 16 x 16 tokens: the first blocks of keys of a late query are masked throughout."""
    config = ModelConfig(
        embed_dim=64, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16], window=16, temporal_patch=2, temporal_window=6,
        norm_placement="pre", attention=backend,
    )  # fmt: skip
    model = ImageClassifier(config, 10, dropout=0.5)
    init_weights(model, torch.Generator().manual_seed(0))
    return model.to("cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_backends_agree(dtype: torch.dtype) -> None:
    clips = torch.randn(2, 3, 16, 128, 96, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    with torch.no_grad():
        expected = classifier("reference", torch.float32).eval()(clips.float())
        for backend in ATTENTION_BACKENDS:
            logits = classifier(backend, dtype).eval()(clips).float()
            assert (logits - expected).norm() <= (0.05 if dtype == torch.bfloat16 else 1e-3) * expected.norm()


@pytest.mark.parametrize("backend", ["sdpa", "sequential"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_backward_repeats_bit_for_bit(backend: str, dtype: torch.dtype) -> None:
    model = classifier(backend, dtype).train()
    clips, seeds = torch.randn(2, 3, 10, 130, 90, device="cuda"), torch.arange(2, device="cuda")
    noise, dropout = drop_path_noise(seeds, 8), channel_noise(seeds, 512)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(clips, noise, dropout).float().square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    with torch.backends.cudnn.flags(deterministic=True):  # as in a run
        first = gradients()
        assert all(gradient.isfinite().all() for gradient in first)
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
