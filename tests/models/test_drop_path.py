from __future__ import annotations

import pytest
import torch

from swinv2_train.models.drop_path import add_branch, branch_scales, drop_path_noise

WORD = 2**64


def splitmix(state: int) -> int:
    """The output function of splitmix64, in Python's integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % WORD
    return state ^ (state >> 31)


def test_noise_is_splitmix64_of_seed_and_branch():
    seeds = [0, 1, 2**40 + 5, 2**63 - 1, -3]
    noise = drop_path_noise(torch.tensor(seeds), num_blocks=3)
    gamma = 0x9E3779B97F4A7C15
    for row, seed in zip(noise.flatten(1).tolist(), seeds, strict=True):
        start = splitmix(seed * gamma % WORD)
        assert row == [(splitmix((start + (i + 1) * gamma) % WORD) >> 40) / 2**24 for i in range(6)]


def test_noise_of_successive_seeds_is_uniform_and_uncorrelated():
    noise = drop_path_noise(torch.arange(20000), num_blocks=2).flatten(1).double()
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.stack([torch.histc(column, 10, 0, 1) for column in noise.T])
    assert (counts - 2000).abs().max() < 6 * 2000**0.5
    neighbours = torch.cat([noise[1:], noise[:-1]], dim=1).T
    correlation = torch.corrcoef(neighbours) - torch.eye(8)
    assert correlation.abs().max() < 0.04


def test_noise_has_the_shape_and_type_of_the_contract():
    noise = drop_path_noise(torch.tensor([7, 8]), num_blocks=5)
    assert noise.shape == (2, 5, 2)
    assert noise.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_branch_is_dropped_below_the_rate_of_its_block_and_scaled_otherwise(dtype):
    noise = torch.tensor([[[0.0, 0.99], [0.2499, 0.25]], [[0.5, 0.0], [0.9, 0.1]]])
    scales = branch_scales(noise, [0.0, 0.25], dtype)
    assert scales.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.tensor([[[1, 1], [0, 4 / 3]], [[1, 1], [4 / 3, 0]]], dtype=scales.dtype)
    torch.testing.assert_close(scales, expected)


def test_adding_a_branch_rounds_once():
    x, branch = torch.randn(3, 2, 2, 4).bfloat16(), torch.randn(3, 2, 2, 4).bfloat16()
    scale = torch.tensor([0.0, 1 / 0.9, 1 / 0.7])
    out = add_branch(x, branch, scale)
    exact = x.double() + branch.double() * scale.double().view(3, 1, 1, 1)
    assert torch.equal(out, exact.float().bfloat16())
    assert torch.equal(out[0], x[0])
    assert torch.equal(add_branch(x, branch, None), x + branch)
