"""Resizing and pooling as matrix products give torch's values and gradients, at any size and for any part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_train.models.resizing import adaptive_pool, enlarge_logits, resize, resize_corners


def with_gradient(result: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A result, and the gradient of a random projection of it."""
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=result.dtype)
    return result.detach(), torch.autograd.grad((result * weights).sum(), x)[0]


def agree(own: Tensor, other: Tensor, x: Tensor, tolerance: float) -> None:
    for mine, theirs in zip(with_gradient(own, x), with_gradient(other, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(
    ("sides", "size"),
    [((4, 6), (8, 12)), ((5, 7), (9, 14)), ((1, 3), (4, 4)), ((8, 8), (3, 5)), ((6, 5), (6, 5)), ((1, 1), (7, 2))],
)
def test_bilinear_resizing_is_that_of_torch(
    sides: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(2, 3, *sides, dtype=dtype, requires_grad=True)
    agree(resize(x, size), F.interpolate(x, size, mode="bilinear", align_corners=False), x, tolerance)
    agree(resize_corners(x, size), F.interpolate(x, size, mode="bilinear", align_corners=True), x, tolerance)


@pytest.mark.parametrize(
    ("sides", "size", "scale"), [((4, 6), (8, 12), 2), ((5, 7), (9, 13), 2), ((3, 2), (10, 5), 4), ((1, 1), (1, 1), 2)]
)
def test_the_scale_of_a_padded_map_is_exact(sides: tuple[int, int], size: tuple[int, int], scale: int) -> None:
    x = torch.randn(2, 3, *sides, dtype=torch.float64, requires_grad=True)
    whole = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    agree(resize(x, size, scale), whole[:, :, : size[0], : size[1]], x, 1e-12)


@pytest.mark.parametrize("sides", [(6, 6), (7, 13), (2, 5), (1, 1), (20, 18)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_adaptive_pooling_is_that_of_torch(sides: tuple[int, int], side: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        x = torch.randn(2, 3, *sides, dtype=dtype, requires_grad=True)
        agree(adaptive_pool(x, side), F.adaptive_avg_pool2d(x, side), x, tolerance)


@pytest.mark.parametrize(("size", "stride"), [((16, 24), 4), ((13, 27), 4), ((3, 1), 4), ((30, 17), 16)])
def test_logits_of_images_of_any_size(size: tuple[int, int], stride: int) -> None:
    sides = [-(-side // stride) for side in size]
    logits = torch.randn(2, 5, *sides, dtype=torch.float64, requires_grad=True)
    whole = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    agree(enlarge_logits(logits, size, stride), whole[:, :, : size[0], : size[1]], logits, 1e-12)
    rows = [(first, min(first + 5, size[0])) for first in range(0, size[0], 5)]
    parts = [enlarge_logits(logits, size, stride, each) for each in rows]
    assert [part.shape[2] for part in parts] == [end - first for first, end in rows]
    agree(torch.cat(parts, dim=2), enlarge_logits(logits, size, stride), logits, 1e-12)


def test_the_factors_of_four_are_exact_in_half_precision() -> None:
    logits = torch.randint(-8, 8, (1, 2, 5, 6)).to(torch.bfloat16)
    wide = enlarge_logits(logits.double(), (20, 24), 4)
    assert (enlarge_logits(logits, (20, 24), 4).double() - wide).abs().max() <= 8 * 2**-8
    assert torch.equal(enlarge_logits(torch.ones_like(logits), (20, 24), 4), torch.ones(1, 2, 20, 24).bfloat16())
