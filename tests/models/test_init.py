from __future__ import annotations

import math

import pytest
import torch

from swinv2_train.models import ImageClassifier, MaskedImageModel, SwinTransformerV2, init_weights
from tests.models.golden import golden_config

CONFIG = golden_config(extra_norm_period=2, absolute_position=True)


def masked_image_model():
    return MaskedImageModel(CONFIG, resolution=(64, 64))


def classifier():
    return ImageClassifier(CONFIG, 5, resolution=(64, 64))


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("build", [masked_image_model, classifier])
def test_every_parameter_of_a_meta_model_is_initialised(build):
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(math.nan)
    init_weights(model, seeded())
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name


def test_weights_follow_the_seed_and_nothing_else():
    first, second, other = masked_image_model(), masked_image_model(), masked_image_model()
    init_weights(first, seeded())
    torch.rand(17)
    init_weights(second, seeded())
    init_weights(other, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.mask_token, other.mask_token)


def test_half_precision_weights_are_the_rounded_float32_ones():
    wide, narrow = masked_image_model(), masked_image_model().bfloat16()
    init_weights(wide, seeded())
    init_weights(narrow, seeded())
    for ours, reference in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(ours, reference.bfloat16())


@pytest.mark.parametrize("build", [masked_image_model, classifier])
def test_distributions_are_the_official_ones(build):
    """Also of a model that was just built, without a call to `init_weights`."""
    torch.manual_seed(0)
    for name, parameter in build().named_parameters():
        if name.endswith("logit_scale"):
            torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, math.log(10)))
        elif ".norm1." in name or ".norm2." in name:
            assert not parameter.any(), name
        elif "norm." in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.startswith("decoder") or "patch_embed.proj" in name:
            fan_in = CONFIG.embed_dim * 8 if name.startswith("decoder") else 3 * 16
            assert parameter.abs().max() <= fan_in**-0.5, name
            assert parameter.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.3), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name
            assert abs(parameter.mean().item()) < 0.08 / parameter.numel() ** 0.5, name


def test_every_block_starts_as_the_identity():
    model = SwinTransformerV2(golden_config())
    x = torch.randn(2, 9, 10, 24)
    assert torch.equal(model.layers[0](x), x)
