"""Sequential attention holds what it promises to hold, and nothing depends on the chunks."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swinv2_train.config.model import ModelConfig
from swinv2_train.models import SwinTransformerV2
from swinv2_train.models.attention.backends import BACKENDS
from swinv2_train.models.attention.contract import AttentionOptions
from swinv2_train.models.attention.sequential import plan_chunks
from tests.models.golden import fill_parameters
from tests.models.memory import LiveBytes, saved_by_autograd

MIB = 2**20
BATCH, HEADS, DIM = 1, 2, 8
IMAGE, CLIP = ((32, 32), (16, 16)), ((8, 8, 16), (4, 8, 8))
"""Sides of a map of 1024 tokens and of its windows of 256 tokens; shifted by half a window."""
TOKENS = BATCH * 1024
SCORES_MIB = 4 * HEADS * 256**2 * 4 / MIB  # 2 MiB
GEOMETRIES = pytest.mark.parametrize("geometry", [IMAGE, CLIP], ids=["image", "clip"])


@pytest.mark.slow
@given(
    windows=st.integers(1, 300),
    heads=st.integers(1, 64),
    window=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    budget=st.integers(1, 2**28),
    masked=st.booleans(),
    backward=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_plan_keeps_to_its_budget_or_is_the_smallest_there_is(windows, heads, window, budget, masked, backward):
    plan = plan_chunks(windows, heads, window, budget, 4, masked=masked, backward=backward)
    assert 1 <= plan.windows <= windows
    assert 1 <= plan.heads <= heads
    assert all(1 <= part <= side for part, side in zip(plan.queries, window, strict=True))
    pairs = math.prod(plan.queries) * math.prod(window)
    scores = plan.windows * plan.heads * pairs * 4 * (2 if backward else 1)
    biases = plan.heads * pairs * 4 * (3 if backward else 1)
    mask = plan.windows * pairs if masked else 0
    smallest = (plan.windows, plan.heads) == (1, 1) and plan.queries == (*(1 for _ in window[1:]), window[-1])
    assert smallest or scores + biases + mask <= budget


def arguments(geometry, *, shifted=True):
    """Leaf tensors qkv, scale, table, and then window and shift."""
    padded, window = geometry
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(BATCH, *padded, 3 * DIM, generator=generator).requires_grad_()
    scale = (1 + 5 * torch.rand(HEADS, generator=generator)).requires_grad_()
    table = torch.rand(HEADS, *(2 * side - 1 for side in window), generator=generator).requires_grad_()
    return [qkv, scale, table], window, tuple(side // 2 if shifted else 0 for side in window)


def measure(attend, geometry, *, shifted=True):
    """(peak bytes of forward, peak of forward and backward, saved storages)."""
    leaves, window, shift = arguments(geometry, shifted=shifted)
    with LiveBytes() as live:
        with saved_by_autograd() as saved:
            out = attend(*leaves, window, shift)
        forward_peak = live.peak
        out.backward(torch.ones_like(out))
    return forward_peak, live.peak, saved


def values_and_gradients(attend, geometry):
    leaves, window, shift = arguments(geometry)
    out = attend(*leaves, window, shift)
    return [out, *torch.autograd.grad(out.sum(), leaves)]


def sequential(chunk_mib):
    return partial(BACKENDS["sequential"], options=AttentionOptions(chunk_mib=chunk_mib))


@pytest.mark.slow
@GEOMETRIES
def test_peak_memory_falls_with_the_chunk(geometry):
    chunks = [16, 1, 0.5, 0.25]
    forward, whole = zip(*(measure(sequential(chunk), geometry)[:2] for chunk in chunks), strict=True)
    assert list(forward) == sorted(forward, reverse=True)
    assert list(whole) == sorted(whole, reverse=True)
    assert forward[-1] < forward[0] / 4
    assert whole[-1] < whole[0] / 4
    # What does not depend on the chunk are maps of tokens; the rest keeps to the chunk, but for its share of the maps.
    floor = measure(sequential(0.1), geometry)[:2]
    map_bytes = TOKENS * DIM * 4
    for chunk, peak, total in zip(chunks, forward, whole, strict=True):
        assert peak <= floor[0] + chunk * MIB + 3 * map_bytes
        assert total <= floor[1] + chunk * MIB + 6 * map_bytes


@pytest.mark.slow
@GEOMETRIES
def test_the_other_backends_need_all_scores_at_a_time_and_sequential_does_not(geometry):
    for name in ("reference", "sdpa"):
        assert measure(partial(BACKENDS[name], options=AttentionOptions()), geometry)[1] > 3 * SCORES_MIB * MIB
    assert measure(sequential(0.25), geometry)[1] < SCORES_MIB * MIB / 2


@pytest.mark.parametrize("shifted", [False, True])
@GEOMETRIES
def test_saved_are_maps_and_tables_only(geometry, shifted):
    saved = measure(sequential(64), geometry, shifted=shifted)[2]
    table = HEADS * math.prod(2 * side - 1 for side in geometry[1])
    regions = TOKENS if shifted else 0
    # projected map, result, log of the denominators, scale, table, regions
    assert sum(size for size, _ in saved.values()) == 4 * (4 * TOKENS * DIM + TOKENS * HEADS + HEADS + table) + regions


@pytest.mark.slow
@GEOMETRIES
def test_results_do_not_depend_on_the_chunk_and_repeat_bit_for_bit(geometry):
    reference = values_and_gradients(partial(BACKENDS["reference"], options=AttentionOptions()), geometry)
    for chunk in (64, 1, 0.1):
        first, second = (values_and_gradients(sequential(chunk), geometry) for _ in range(2))
        for ours, again, expected in zip(first, second, reference, strict=True):
            assert torch.equal(ours, again)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
def test_sequential_under_activation_checkpointing(dtype):
    """Recomputation repeats the forward pass exactly, so the gradients are bit-equal with and without it."""
    gradients = []
    for checkpointing in (0, 1):
        config = ModelConfig(
            embed_dim=8,
            depths=[2, 2, 1, 1],
            num_heads=[1, 2, 2, 2],
            window=4,
            attention="sequential",
            sequential_chunk_mib=0.005,
            checkpointing=checkpointing,
        )
        model = SwinTransformerV2(config)
        fill_parameters(model)
        model.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        images = torch.linspace(-1, 1, 2 * 3 * 36 * 44).view(2, 3, 36, 44)
        noise = torch.linspace(0, 0.999, 2 * 6 * 2).view(2, 6, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "autocast"):
            features = model(images, noise=noise)
        sum(feature.float().square().sum() for feature in features).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.isfinite().all()
        assert torch.equal(plain, recomputed)
