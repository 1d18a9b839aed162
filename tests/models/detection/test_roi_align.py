"""RoIAlign by matrix products equals torchvision's, forward and backward, for boxes of all kinds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from swinv2_train.models.detection import roi_align as module
from swinv2_train.models.detection.roi_align import RepeatableRoiAlign, axis_weights, map_gradient, roi_align
from tests.models.detection.made import LargestTensor

STRIDE = 4


def boxes() -> Tensor:
    """Inside, partly and entirely outside, tiny, huge, of one pixel, without area, turned around, and random ones."""
    special = [
        [8, 8, 40, 36], [-20, -12, 30, 40], [50, 40, 140, 90], [200, 200, 260, 240], [-90, -80, -30, -20],
        [10.2, 11.1, 10.3, 11.4], [-500, -400, 900, 800], [16, 20, 17, 21], [12, 12, 12, 12], [30, 30, 20, 10],
        [0, 0, 68, 52], [3, 0, 5, 52],
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    corners = 80 * torch.rand(30, 2, generator=generator, dtype=torch.float64) - 10
    sides = 70 * torch.rand(30, 2, generator=generator, dtype=torch.float64)
    every = torch.cat([torch.tensor(special, dtype=torch.float64), torch.cat([corners, corners + sides], dim=1)])
    images = torch.arange(len(every), dtype=torch.float64)[:, None] % 2
    return torch.cat([images, every], dim=1)


def level() -> Tensor:
    return torch.randn(3, 5, 13, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [7, 14])
def test_weights_of_both_axes_are_those_of_torchvision(side: int) -> None:
    x, rois = level(), boxes()
    places = rois[:, 1:] / STRIDE - 0.5
    rows, columns = (axis_weights(places[:, axis], places[:, axis + 2], side, x.shape[3 - axis]) for axis in (1, 0))
    found = torch.einsum("rpy,rcyx,rqx->rcpq", rows, x[rois[:, 0].long()], columns)
    expected = torchvision_roi_align(x, rois, side, 1 / STRIDE, 0, aligned=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert expected[0].all()
    assert not expected[3].any(), "beyond the map"


@pytest.mark.parametrize("side", [7, 14])
def test_gradients_are_those_of_torchvision(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the boxes of an image are multiplied in several parts; the third image has none."""
    x, rois = level().requires_grad_(), boxes()
    expected = torchvision_roi_align(x, rois, side, 1 / STRIDE, 0, aligned=True)
    outer = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (wanted,) = torch.autograd.grad(expected, x, outer)
    for together in (16, 5):
        monkeypatch.setattr(module, "_TOGETHER", together)
        found = RepeatableRoiAlign.apply(x, rois, side, STRIDE)
        assert torch.equal(found, expected)
        (gradient,) = torch.autograd.grad(found, x, outer)
        assert gradient.shape == x.shape
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)
    assert not gradient[2].any()
    nothing = RepeatableRoiAlign.apply(x, rois[:0], side, STRIDE)
    (gradient,) = torch.autograd.grad(nothing, x, outer[:0])
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [3, 4, 5, 6, 7, 14])
def test_gradients_are_those_of_torchvision_at_every_stride(stride: int, dtype: torch.dtype) -> None:
    """Whole numbers among the sides: their numbers of samples are on the edge of two."""
    generator = torch.Generator().manual_seed(4)
    corners, sides = (torch.rand(400, 2, generator=generator, dtype=dtype) * size for size in (50, 80))
    rois = torch.cat([torch.zeros(400, 1, dtype=dtype), corners, corners + 50 + sides], dim=1)
    rois[::2] = rois[::2].round()
    x = torch.randn(1, 2, 30, 30, generator=generator, dtype=dtype).requires_grad_()
    expected = torchvision_roi_align(x, rois, 7, 1 / stride, 0, aligned=True)
    outer = torch.randn(expected.shape, generator=generator, dtype=dtype)
    (wanted,) = torch.autograd.grad(expected, x, outer)
    (found,) = torch.autograd.grad(RepeatableRoiAlign.apply(x, rois, 7, stride), x, outer)
    torch.testing.assert_close(found, wanted, rtol=0, atol=(1e-4 if dtype == torch.float32 else 1e-12) * wanted.max())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_boxes_that_are_not_finite_have_gradients_that_are_not(value: float) -> None:
    rois = torch.tensor([[0.0, 4, 4, 20, 20], [1, 4, 4, value, 20]])
    found = map_gradient(torch.ones(2, 5, 7, 7), rois, torch.Size([2, 5, 13, 17]), STRIDE)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


def test_memory_does_not_depend_on_the_number_of_boxes() -> None:
    """The largest tensor of the gradient is the same for 64 boxes as for 16, by the operations that run."""

    sizes = []
    for count in (16, 64):
        rois = torch.tensor([[0.0, 4, 4, 60, 50]]).repeat(count, 1)
        gradient = torch.ones(count, 8, 7, 7)
        with LargestTensor() as largest:
            map_gradient(gradient, rois, torch.Size([1, 8, 16, 24]), STRIDE)
        sizes.append(largest.bytes)
    assert sizes[0] == sizes[1] == 16 * 7 * 8 * 24 * 4


def test_a_cpu_repeats_its_gradients_bitwise() -> None:
    x, rois = level().float().requires_grad_(), boxes().float()
    gradients = [torch.autograd.grad(roi_align(x, rois, 7, STRIDE).square().sum(), x)[0] for _ in range(3)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
