from __future__ import annotations

import itertools

import pytest
import torch

from swinv2_train.models import geometry
from swinv2_train.models.geometry import (
    TensorCache,
    collapse_bias,
    expand_bias,
    from_windows,
    region_mask,
    relative_coordinates,
    to_windows,
    window_regions,
)

CPU = torch.device("cpu")


def test_coordinates_are_those_of_the_official_code():
    table = relative_coordinates((8, 8), (0, 0), CPU).view(15, 15, 2)
    axis = torch.tensor([0, 0.3665119, 0.5720690, 0.7156138, 0.8260158, 0.9157446, 0.9913349, 1.0566417])
    torch.testing.assert_close(table[7:, 0, 0], axis)
    torch.testing.assert_close(table[0, 7:, 1], axis)
    torch.testing.assert_close(table, -table.flip(0, 1))


def test_coordinates_are_scaled_by_the_pretraining_window_per_side():
    table = relative_coordinates((16, 4), (8, 0), CPU).view(31, 7, 2)
    assert table[-1, 0, 0].item() == pytest.approx(1.3937765)
    assert table[0, -1, 1].item() == pytest.approx(1.0566417)


@pytest.mark.parametrize(("window", "pretrained"), [((1, 1), (0, 0)), ((1, 4), (0, 0)), ((4, 4), (1, 1))])
def test_a_side_of_one_token_has_finite_coordinates(window, pretrained):
    assert relative_coordinates(window, pretrained, CPU).isfinite().all()


def test_windows_and_back():
    x = torch.randn(2, 6, 8, 3 * 2 * 5)
    windows = to_windows(x, (3, 4), parts=3, heads=2)
    assert windows.shape == (3, 2, 4, 2, 12, 5)
    # Second image, window (1, 0), head 1, token (2, 3), part 2.
    torch.testing.assert_close(windows[2, 1, 2, 1, 11], x[1, 5, 3, 25:30])
    torch.testing.assert_close(from_windows(windows, (3, 4), (6, 8)), x)


@pytest.mark.parametrize(("padded", "window", "shift"), [((8, 12), (4, 4), (2, 2)), ((6, 4), (3, 4), (1, 0))])
def test_mask_separates_tokens_that_only_the_roll_brought_together(padded, window, shift):
    regions = window_regions(padded, window, shift, CPU)
    mask = region_mask(regions, regions)
    columns = padded[1] // window[1]
    for index, a, b in itertools.product(range(len(regions)), range(regions.shape[1]), range(regions.shape[1])):
        wrapped = []
        for token in (a, b):
            row = (index // columns) * window[0] + token // window[1]
            column = (index % columns) * window[1] + token % window[1]
            wrapped.append((row >= padded[0] - shift[0], column >= padded[1] - shift[1]))
        assert mask[index, a, b] == (wrapped[0] != wrapped[1])


@pytest.mark.parametrize("window", [(1, 1), (1, 3), (4, 3)])
def test_bias_depends_on_the_offset_and_can_be_made_in_parts(window):
    wh, ww = window
    table = torch.randn(2, 2 * wh - 1, 2 * ww - 1)
    bias = expand_bias(table, window)
    for query, key in itertools.product(range(wh * ww), repeat=2):
        down, right = query // ww - key // ww, query % ww - key % ww
        assert torch.equal(bias[:, query, key], table[:, down + wh - 1, right + ww - 1])
    parts = [expand_bias(table, window, (row, row + 1)) for row in range(wh)]
    assert torch.equal(torch.cat(parts, dim=1), bias)


@pytest.mark.parametrize("rows", [(0, 4), (1, 3)])
def test_collapsing_is_the_gradient_of_spreading(rows):
    table = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    bias = expand_bias(table, (4, 3), rows)
    gradient = torch.randn_like(bias)
    (expected,) = torch.autograd.grad(bias, table, gradient)
    actual = torch.zeros_like(table)
    actual[:, rows[0] : rows[1] + 3] = collapse_bias(gradient, (4, 3))
    torch.testing.assert_close(actual, expected)


def test_tables_are_shared_and_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(geometry, "REGIONS", TensorCache(max_entries=3))
    first = window_regions((8, 8), (4, 4), (2, 2), CPU)
    assert window_regions((8, 8), (4, 4), (2, 2), CPU) is first
    for side in (12, 16, 20):
        window_regions((side, side), (4, 4), (2, 2), CPU)
    assert len(geometry.REGIONS.entries) == 3
    assert window_regions((8, 8), (4, 4), (2, 2), CPU) is not first


def test_a_table_made_in_inference_mode_serves_training(monkeypatch):
    monkeypatch.setattr(geometry, "COORDINATES", TensorCache(max_entries=2))
    with torch.inference_mode():
        relative_coordinates((3, 3), (0, 0), CPU)
    weight = torch.ones(2, requires_grad=True)
    (relative_coordinates((3, 3), (0, 0), CPU) * weight).sum().backward()
    assert weight.grad is not None


def test_a_tracers_fake_tensor_is_not_kept(monkeypatch):
    monkeypatch.setattr(geometry, "COORDINATES", TensorCache(max_entries=2))
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        relative_coordinates((3, 3), (0, 0), CPU)
    assert type(relative_coordinates((3, 3), (0, 0), CPU)) is torch.Tensor
