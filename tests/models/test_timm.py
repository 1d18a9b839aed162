"""timm's SwinV2 with our weights computes what we compute, values and gradients."""

from __future__ import annotations

import pytest
import torch

from swinv2_train.config.model import ATTENTION_BACKENDS
from swinv2_train.models import ImageClassifier
from tests.models.golden import fill_parameters, golden_config

timm_swin = pytest.importorskip("timm.models.swin_transformer_v2")


def timm_name(name: str) -> str:
    """timm puts the merging at the start of the next stage, and names the head otherwise."""
    name = name.removeprefix("backbone.")
    if ".downsample." in name:
        stage, rest = name.removeprefix("layers.").split(".", 1)
        return f"layers.{int(stage) + 1}.{rest}"
    return name.replace("head.", "head.fc.")


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
@pytest.mark.parametrize(("side", "window"), [(64, 4), (96, 6)])
def test_same_values_and_gradients_as_timm(side, window, backend):
    torch.manual_seed(0)
    ours = ImageClassifier(golden_config(window=window, attention=backend), 5)
    fill_parameters(ours)  # the official initial weights zero every branch and would compare nothing
    theirs = timm_swin.SwinTransformerV2(
        img_size=side,
        window_size=window,
        embed_dim=24,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        num_classes=5,
        drop_path_rate=0.0,
    )
    state = {timm_name(name): value for name, value in ours.state_dict().items()}
    assert set(theirs.state_dict()) == set(state)
    theirs.load_state_dict(state)

    images = torch.randn(2, 3, side, side)
    expected, actual = theirs(images), ours(images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(actual)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        reference = their_gradients[timm_name(name)]
        assert reference.norm() > 0, name
        assert (parameter.grad - reference).norm() <= 1e-4 * reference.norm(), name
