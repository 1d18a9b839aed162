from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from swinv2_train.models.layers import LayerNorm, PatchEmbed, PatchMerging, position_embedding


def float32_norm(norm, x):
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_norm_computes_in_float32_and_returns_the_dtype_of_its_input(weights, autocast, device):
    """Values around 300 with a spread of 4: a mean rounded to bfloat16 would be off by up to 1."""
    torch.manual_seed(0)
    norm = LayerNorm(64).to(device, weights)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (300 + 4 * torch.randn(5, 64, device=device)).bfloat16().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), float32_norm(norm, x), rtol=2**-8, atol=1e-5)
    weight = torch.linspace(-1, 1, 320, device=device).view(5, 64).bfloat16()
    (actual,) = torch.autograd.grad((out.float() * weight).sum(), x)
    (expected,) = torch.autograd.grad((float32_norm(norm, x) * weight).sum(), x)
    assert (actual - expected).float().norm() <= 0.004 * expected.float().norm()


def test_norm_of_float32_input_under_autocast_stays_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = 300 + torch.randn(2, 8)
        assert torch.equal(LayerNorm(8)(x), F.layer_norm(x, (8,)))


def test_patches_of_an_odd_image_are_padded_with_zeros():
    embed = PatchEmbed(2, 4, 6)
    image = torch.randn(1, 2, 5, 9)
    padded = torch.zeros(1, 2, 8, 12)
    padded[:, :, :5, :9] = image
    assert embed(image).shape == (1, 2, 3, 6)
    torch.testing.assert_close(embed(image), embed(padded))


def test_merging_takes_neighbors_in_the_official_order():
    merging = PatchMerging(3)
    torch.nn.init.normal_(merging.reduction.weight)
    x = torch.randn(1, 4, 6, 3)
    neighbours = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    torch.testing.assert_close(merging(x), merging.norm(merging.reduction(torch.cat(neighbours, -1))))


def test_position_embedding_is_resized_only_for_other_maps():
    grid = torch.randn(6, 8, 2)
    embedding = grid.reshape(1, 48, 2)
    assert torch.equal(position_embedding(embedding, (6, 8), 6, 8)[0], grid)
    resized = position_embedding(embedding, (6, 8), 12, 5)
    assert resized.shape == (1, 12, 5, 2)
    for channel in range(2):
        expected = F.interpolate(grid[None, None, :, :, channel], (12, 5), mode="bicubic")[0, 0]
        torch.testing.assert_close(resized[0, :, :, channel], expected)
    assert position_embedding(embedding.bfloat16(), (6, 8), 12, 5).dtype == torch.bfloat16
