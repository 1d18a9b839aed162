from __future__ import annotations

import pytest
import torch

from swinv2_train.models.drop_path import add_branch, drop_path_noise

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


def test_a_branch_is_dropped_below_the_rate_and_scaled_otherwise():
    x, branch = torch.randn(3, 2, 2, 4), torch.randn(3, 2, 2, 4)
    out = add_branch(x, branch, torch.tensor([0.2499, 0.25, 0.9]), rate=0.25)
    torch.testing.assert_close(out[0], x[0], rtol=0, atol=0)
    torch.testing.assert_close(out[1:], x[1:] + branch[1:] / 0.75)


@pytest.mark.parametrize(("noise", "rate"), [(None, 0.5), (torch.zeros(2), 0.0)])
def test_without_noise_or_rate_every_branch_stays(noise, rate):
    x, branch = torch.randn(2, 1, 1, 4), torch.randn(2, 1, 1, 4)
    torch.testing.assert_close(add_branch(x, branch, noise, rate), x + branch, rtol=0, atol=0)
