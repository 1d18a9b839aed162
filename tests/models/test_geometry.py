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
    map_regions,
    offset_slices,
    region_mask,
    relative_coordinates,
    resize_table,
    to_windows,
    window_regions,
)
from tests.models.plain import places, spread

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


def test_coordinates_have_one_column_per_axis():
    table = relative_coordinates((2, 8, 4), (0, 4, 0), CPU)
    assert table.shape == (3 * 15 * 7, 3)
    table = table.view(3, 15, 7, 3)
    for axis, (side, trained) in enumerate([(2, 2), (8, 4), (4, 4)]):
        alone = relative_coordinates((side,), (trained,), CPU).flatten()
        shape = [-1 if other == axis else 1 for other in range(3)]
        assert torch.equal(table[..., axis], alone.view(shape).expand(3, 15, 7))
    image = relative_coordinates((8, 4), (4, 0), CPU).view(15, 7, 2)
    assert torch.equal(table[1], torch.cat([torch.zeros(15, 7, 1), image], -1))


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


def test_windows_of_a_clip_and_back():
    x = torch.randn(2, 4, 6, 8, 3 * 2 * 5)
    windows = to_windows(x, (2, 3, 4), parts=3, heads=2)
    assert windows.shape == (3, 2, 8, 2, 24, 5)
    # Second clip, window (1, 0, 1), head 1, token (1, 2, 0), part 2.
    assert torch.equal(windows[2, 1, 5, 1, 20], x[1, 3, 2, 4, 25:30])
    assert torch.equal(from_windows(windows, (2, 3, 4), (4, 6, 8)), x)


@pytest.mark.parametrize(
    ("padded", "window", "shift"),
    [
        ((8, 12), (4, 4), (2, 2)),
        ((6, 4), (3, 4), (1, 0)),
        ((4, 4, 3), (2, 2, 1), (1, 1, 0)),
        ((4, 2, 6), (2, 2, 3), (1, 0, 2)),
    ],
)
def test_mask_separates_tokens_that_only_the_roll_brought_together(padded, window, shift):
    regions = window_regions(padded, window, shift, CPU)
    mask = region_mask(regions, regions)
    corners = itertools.product(*(range(0, side, extent) for side, extent in zip(padded, window, strict=True)))
    for index, corner in enumerate(corners):
        tokens = [[a + b for a, b in zip(corner, place, strict=True)] for place in places(window)]
        wrapped = [[i >= side - by for i, side, by in zip(token, padded, shift, strict=True)] for token in tokens]
        assert mask[index].tolist() == [[a != b for b in wrapped] for a in wrapped]
    assert len(regions) == index + 1
    x = torch.empty(1, *padded, 2)
    assert map_regions(x, window, shift) is regions
    assert map_regions(x, window, tuple(0 for _ in shift)) is None


@pytest.mark.parametrize("window", [(4,), (1, 1), (1, 3), (4, 3), (2, 3, 2), (3, 1, 2)])
def test_bias_depends_on_the_offset_and_can_be_made_in_parts(window):
    table = torch.randn(2, *(2 * side - 1 for side in window))
    bias = expand_bias(table, window)
    assert torch.equal(bias, spread(table, window))
    rows = itertools.product(*(range(side) for side in window[:-1]))
    parts = [expand_bias(table, window, (*((i, i + 1) for i in row), (0, window[-1]))) for row in rows]
    assert torch.equal(torch.cat(parts, dim=1), bias)


@pytest.mark.parametrize(
    ("window", "queries"),
    [
        ((4, 3), ((0, 4), (0, 3))),
        ((4, 3), ((1, 3), (0, 3))),
        ((2, 3, 2), ((0, 2), (0, 3), (0, 2))),
        ((3, 4, 2), ((1, 2), (1, 3), (0, 2))),
    ],
)
def test_collapsing_is_the_gradient_of_spreading(window, queries):
    table = torch.randn(2, *(2 * side - 1 for side in window), dtype=torch.float64, requires_grad=True)
    bias = expand_bias(table, window, queries)
    gradient = torch.randn_like(bias)
    (expected,) = torch.autograd.grad(bias, table, gradient)
    actual = torch.zeros_like(table)
    box = tuple(last - first for first, last in queries)
    actual[(slice(None), *offset_slices(window, queries))] = collapse_bias(gradient, window, box)
    torch.testing.assert_close(actual, expected)
    if box == window:
        assert torch.equal(collapse_bias(gradient, window), actual)


def test_a_table_of_a_clip_is_resized_along_every_axis():
    table = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    expected = table
    for axis, size in ((1, 5), (2, 3), (3, 9)):
        lines = expected.movedim(axis, -1)
        resized = torch.nn.functional.interpolate(lines.flatten(0, -2)[None, :, None], (1, size), mode="bicubic")
        expected = resized.view(*lines.shape[:-1], size).movedim(-1, axis)
    torch.testing.assert_close(resize_table(table, (3, 2, 5)), expected)
    # An axis of one frame changes no bit of an image's table.
    image = torch.randn(2, 5, 7)
    assert torch.equal(resize_table(image.unsqueeze(1), (1, 2, 5)).squeeze(1), resize_table(image, (2, 5)))
    assert resize_table(table, (2, 3, 4)) is table


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


def test_dynamo_takes_the_tables_for_constants():
    expected = vars(torch.compiler.assume_constant_result(lambda: None))
    assert expected
    for function in (relative_coordinates, geometry.resizing_matrix, geometry.window_regions):
        assert vars(function) == expected
