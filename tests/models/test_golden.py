"""Our model, filled by formulas, gives the numbers of the official implementation, whatever the attention backend."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.model import ATTENTION_BACKENDS
from swinv2_train.models import ImageClassifier, MaskedImageModel
from tests.models.golden import (
    CASES,
    SIMMIM_GRADIENT_NORMS,
    SIMMIM_LOSS,
    fill_parameters,
    golden_config,
    golden_images,
    golden_token_mask,
)

OFFICIAL_BLOCK = [
    *("norm1.weight", "norm1.bias", "attn.logit_scale", "attn.q_bias", "attn.v_bias"),
    *("attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight", "attn.qkv.weight"),
    *("attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
]


def official_names() -> list[str]:
    names = [f"patch_embed.{part}.{kind}" for part in ("proj", "norm") for kind in ("weight", "bias")]
    for stage in range(4):
        names += [f"layers.{stage}.blocks.{block}.{name}" for block in range(2) for name in OFFICIAL_BLOCK]
        if stage < 3:
            names += [f"layers.{stage}.downsample.{name}" for name in ("reduction.weight", "norm.weight", "norm.bias")]
    return [*names, "norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_parameters_have_the_official_names_and_order():
    model = ImageClassifier(golden_config(), num_classes=5)
    assert [name.removeprefix("backbone.") for name, _ in model.named_parameters()] == official_names()


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_logits(case, backend):
    size, fields, logits = CASES[case]
    images = golden_images(size)
    model = ImageClassifier(golden_config(attention=backend, **fields), 5, resolution=images.shape[2:]).double().eval()
    fill_parameters(model)
    with torch.no_grad():
        actual = model(images)
    torch.testing.assert_close(actual, torch.tensor([logits], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["E", "F", "G", "H"])
def test_the_other_rule_gives_other_logits_on_these_maps(case):
    size, fields, logits = CASES[case]
    model = ImageClassifier(golden_config(**{**fields, "window_rule": "per-axis"}), 5).double().eval()
    fill_parameters(model)
    with torch.no_grad():
        difference = (model(golden_images(size)) - torch.tensor([logits])).abs().max()
    assert difference > 0.1


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_simmim_loss_and_gradients(backend):
    model = MaskedImageModel(golden_config(attention=backend)).double().eval()
    fill_parameters(model)
    images, token_mask = golden_images(64), golden_token_mask()
    reconstruction = model(images, token_mask)
    pixel_mask = token_mask.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    loss = ((images - reconstruction).abs() * pixel_mask).sum() / (pixel_mask.sum() + 1e-5) / 3
    loss.backward()

    assert loss.item() == pytest.approx(SIMMIM_LOSS, abs=1e-7)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(gradients) == 154
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    for name, norm in SIMMIM_GRADIENT_NORMS.items():
        assert (gradients[name] if name else whole).norm().item() == pytest.approx(norm, abs=1e-7), name
