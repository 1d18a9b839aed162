"""Sequential attention holds what it promises to hold, and nothing depends on the chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swinv2_train.config.model import ModelConfig
from swinv2_train.models import SwinTransformerV2
from swinv2_train.models.attention import reference_attention, sdpa_attention
from swinv2_train.models.geometry import window_regions
from swinv2_train.models.sequential import plan_chunks, sequential_attention
from tests.models.golden import fill_parameters
from tests.models.memory import LiveBytes, saved_by_autograd

MIB = 2**20
BATCH, SIDE, WINDOW, HEADS, DIM = 1, 32, 16, 2, 8
TOKENS = WINDOW**2
SCORES_MIB = BATCH * (SIDE // WINDOW) ** 2 * HEADS * TOKENS**2 * 4 / MIB  # 2 MiB


@given(
    windows=st.integers(1, 300),
    heads=st.integers(1, 64),
    window=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    budget=st.integers(1, 2**28),
    masked=st.booleans(),
    backward=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_plan_keeps_to_its_budget_or_is_the_smallest_there_is(windows, heads, window, budget, masked, backward):
    plan = plan_chunks(windows, heads, window, budget, 4, masked=masked, backward=backward)
    assert 1 <= plan.windows <= windows
    assert 1 <= plan.heads <= heads
    assert 1 <= plan.query_rows <= window[0]
    pairs = plan.query_rows * window[1] * window[0] * window[1]
    scores = plan.windows * plan.heads * pairs * 4 * (2 if backward else 1)
    biases = plan.heads * pairs * 4 * (3 if backward else 1)
    mask = plan.windows * pairs if masked else 0
    smallest = (plan.windows, plan.heads, plan.query_rows) == (1, 1, 1)
    assert smallest or scores + biases + mask <= budget


def measure(attend, *, shifted=True):
    """(peak bytes of forward, peak of forward and backward, saved storages, tensors to compare)."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(BATCH, SIDE, SIDE, 3 * DIM, generator=generator).requires_grad_()
    scale = (1 + 5 * torch.rand(HEADS, generator=generator)).requires_grad_()
    table = torch.rand(HEADS, 2 * WINDOW - 1, 2 * WINDOW - 1, generator=generator).requires_grad_()
    shift = (WINDOW // 2, WINDOW // 2)
    window = (WINDOW, WINDOW)
    regions = window_regions((SIDE, SIDE), window, shift, qkv.device) if shifted else None
    with LiveBytes() as live:
        with saved_by_autograd() as saved:
            out = attend(qkv, scale, table, regions, window)
        forward_peak = live.peak
        out.backward(torch.ones_like(out))
    return forward_peak, live.peak, saved, [out.detach(), qkv.grad, scale.grad, table.grad]


def sequential(chunk_mib):
    return lambda *arguments: sequential_attention(*arguments, chunk_mib)


def test_peak_memory_falls_with_the_chunk():
    chunks = [16, 2, 1, 0.5, 0.25]
    forward, whole = zip(*(measure(sequential(chunk))[:2] for chunk in chunks), strict=True)
    assert list(forward) == sorted(forward, reverse=True)
    assert list(whole) == sorted(whole, reverse=True)
    assert forward[-1] < forward[0] / 4
    assert whole[-1] < whole[0] / 4
    # What does not depend on the chunk are maps of tokens; the rest keeps to the chunk, but for its share of the maps.
    floor = measure(sequential(0.1))[:2]
    map_bytes = BATCH * SIDE * SIDE * DIM * 4
    for chunk, peak, total in zip(chunks, forward, whole, strict=True):
        assert peak <= floor[0] + chunk * MIB + 3 * map_bytes
        assert total <= floor[1] + chunk * MIB + 6 * map_bytes


def test_the_other_backends_need_the_scores_at_once_and_sequential_does_not():
    for attend in (reference_attention, sdpa_attention):
        assert measure(attend)[1] > 3 * SCORES_MIB * MIB
    assert measure(sequential(0.25))[1] < SCORES_MIB * MIB / 2


@pytest.mark.parametrize("shifted", [False, True])
def test_saved_are_maps_and_tables_only(shifted):
    saved = measure(sequential(64), shifted=shifted)[2]
    tokens = BATCH * SIDE * SIDE
    table = HEADS * (2 * WINDOW - 1) ** 2
    regions = SIDE * SIDE if shifted else 0
    # projected map, result, log of the denominators, scale, table, regions
    assert sum(size for size, _ in saved.values()) == 4 * (4 * tokens * DIM + tokens * HEADS + HEADS + table) + regions


def test_results_do_not_depend_on_the_chunk_and_repeat_bit_for_bit():
    reference = measure(reference_attention)[3]
    for chunk in (64, 1, 0.1):
        first, second = measure(sequential(chunk))[3], measure(sequential(chunk))[3]
        for ours, again, expected in zip(first, second, reference, strict=True):
            assert torch.equal(ours, again)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


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
