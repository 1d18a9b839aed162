"""The gradients of a segmenter are the same bits every time, in every precision."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.model import variant
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.models import Segmenter, drop_path_noise, init_weights
from swinv2_train.models.channel_dropout import channel_noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("decoder", ["upernet", "fpn", "linear"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_backward_repeats_bit_for_bit(decoder: str, dtype: torch.dtype) -> None:
    model = Segmenter(variant("swinv2_tiny"), SegmentationConfig(decoder=decoder), 19)
    init_weights(model, torch.Generator().manual_seed(0))
    model.to("cuda", dtype).train()
    images, seeds = torch.randn(2, 3, 250, 330, device="cuda"), torch.arange(2, device="cuda")
    noise, dropout = drop_path_noise(seeds, 12), channel_noise(seeds, model.dropout_channels)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits, auxiliary = model(images, noise, dropout)
        assert auxiliary is not None
        (logits.float().square().mean() + auxiliary.float().square().mean()).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    with torch.backends.cudnn.flags(deterministic=True):  # as in a run
        first = gradients()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
