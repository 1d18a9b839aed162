"""The attention backends on random geometries: equal values and gradients, whatever the shape of window and map.

Uninitialized memory is filled with NaN, so that a result that was never written cannot pass by luck.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest
import torch

from swinv2_train.models import SwinTransformerV2, drop_path_noise
from swinv2_train.models.attention import reference_attention, sdpa_attention
from swinv2_train.models.geometry import window_regions
from swinv2_train.models.sequential import plan_chunks, sequential_attention
from tests.models.golden import fill_parameters, golden_config

NUM_GEOMETRIES = 240
NUM_MODELS = 10


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors hold NaN until something is written to them."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def draw_geometry(seed):
    """Window, windows per side of the map, shift, heads, channels of a head, batch, cosine or dot, padding."""
    draw = random.Random(seed)
    window = (draw.choice([1, 2, 3, 4]), draw.choice([1, 2, 3, 4]))
    counts = (draw.choice([1, 2, 3]), draw.choice([1, 2, 2]))
    shifts = [
        (0, side // 2, (side + 1) // 2) if count > 1 and side > 1 else (0,)
        for side, count in zip(window, counts, strict=True)
    ]
    shift = tuple(draw.choice(choices) for choices in shifts)
    padding = tuple(draw.choice([0, 0, draw.randrange(side)]) for side in window)
    return window, counts, shift, draw.choice([1, 2, 3]), draw.randint(1, 4), draw.choice([1, 2, 2, 3]), padding


def draw_arguments(seed):
    """Leaf tensors qkv, scale (None for the dot product) and table; regions, window, and a gradient of the result."""
    window, counts, shift, heads, dim, batch, padding = draw_geometry(seed)
    generator = torch.Generator().manual_seed(seed)
    padded = (window[0] * counts[0], window[1] * counts[1])
    qkv = torch.randn(batch, *padded, 3 * heads * dim, generator=generator, dtype=torch.float64)
    qkv[:, padded[0] - padding[0] :, :, heads * dim : 2 * heads * dim] = 0  # a padding token has the zero key
    qkv[:, :, padded[1] - padding[1] :, heads * dim : 2 * heads * dim] = 0
    scale = 1 + 30 * torch.rand(heads, generator=generator, dtype=torch.float64) if seed % 2 else None
    table = 16 * torch.rand(heads, 2 * window[0] - 1, 2 * window[1] - 1, generator=generator, dtype=torch.float64)
    gradient = torch.randn(batch, *padded, heads * dim, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        gradient = gradient[:, :1, :1].expand_as(gradient)  # such as that of a mean over the map
    regions = window_regions(padded, window, shift, qkv.device) if any(shift) else None
    leaves = [None if leaf is None else leaf.requires_grad_() for leaf in (qkv, scale, table)]
    return leaves, regions, window, gradient


def chunk_mib(seed):
    """A memory bound per geometry; together they make chunks of all kinds."""
    return (0.0008, 0.002, 0.004, 0.01, 0.03, 64.0)[seed // 2 % 6]


def values_and_gradients(attend, seed):
    leaves, regions, window, gradient = draw_arguments(seed)
    out = attend(*leaves, regions, window)
    return [out, *torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], gradient)]


@pytest.mark.parametrize("tenth", range(10))
def test_backends_agree_on_random_geometries(tenth):
    for seed in range(tenth, NUM_GEOMETRIES, 10):
        expected = values_and_gradients(reference_attention, seed)
        for name, attend in (
            ("sdpa", sdpa_attention),
            ("sequential", partial(sequential_attention, chunk_mib=chunk_mib(seed))),
        ):
            for ours, reference in zip(values_and_gradients(attend, seed), expected, strict=True):
                message = f"{name}, seed {seed}, {draw_geometry(seed)}"
                assert reference.isfinite().all(), message
                torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-10, msg=message)


def test_the_random_geometries_cover_the_corners():
    seen = Counter()
    for seed in range(NUM_GEOMETRIES):
        window, counts, shift, heads, _, batch, padding = draw_geometry(seed)
        masked = any(shift)
        number = batch * counts[0] * counts[1]
        for backward in (False, True):
            budget = chunk_mib(seed) * 2**20
            plan = plan_chunks(number, heads, window, budget, 8, masked=masked, backward=backward)
            seen["part of the heads"] += plan.heads < heads and plan.windows == number
            seen["part of the windows"] += 1 < plan.windows < number
            seen["part of the rows"] += plan.query_rows < window[0]
            seen["one chunk"] += (plan.windows, plan.heads, plan.query_rows) == (number, heads, window[0])
        seen["not square"] += window[0] != window[1] and batch > 1
        seen["width 1"] += window[1] == 1 < window[0] and batch > 1 and number > batch
        seen["height 1"] += window[0] == 1 < window[1] and batch > 1 and number > batch
        seen["one token"] += window == (1, 1)
        seen["as tall as the map"] += counts[0] == 1 < counts[1]
        seen["as wide as the map"] += counts[1] == 1 < counts[0]
        seen["shifted along one side"] += masked and not all(shift)
        seen["shifted along both"] += all(shift)
        seen["padded"] += any(padding)
    assert min(seen.values()) >= 10, seen


def draw_model(seed):
    """Fields of a model, and the size of its images, in which windows of any kind meet maps of any kind."""
    draw = random.Random(1000 + seed)
    fields = {
        "embed_dim": 4,
        "patch_size": draw.choice([1, 2]),
        "depths": [2, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "mlp_ratio": 1.0,
        "similarity": ("cosine", "dot")[seed % 2],
        "norm_placement": draw.choice(["res-post", "pre", "sandwich"]),
        "extra_norm_period": draw.choice([0, 2]),
        "drop_path": 0.3,
    }
    fields["window"] = [[draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 4])] for _ in range(4)]
    if seed % 3 == 0:
        fields |= {"window": [draw.choice([1, 2, 3]) for _ in range(4)], "window_rule": "official"}
    return fields, (draw.randint(3, 11), draw.randint(3, 11))


@pytest.mark.parametrize("seed", range(NUM_MODELS))
def test_backbones_agree_in_value_and_gradient(seed):
    fields, size = draw_model(seed)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    results = []
    for backend, checkpointing in (("reference", 0), ("sdpa", 0), ("sequential", seed % 4 // 2)):
        chunk = (0.0008, 0.004)[seed % 2]
        model = SwinTransformerV2(
            golden_config(attention=backend, checkpointing=checkpointing, sequential_chunk_mib=chunk, **fields)
        ).double()
        fill_parameters(model)
        features = model.train()(images, noise=drop_path_noise(torch.arange(2), model.num_blocks))
        sum(feature.square().mean() for feature in features).backward()
        results.append([*features, *(parameter.grad for parameter in model.parameters())])
    for others in results[1:]:
        for ours, reference in zip(others, results[0], strict=True):
            assert reference.isfinite().all()
            torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-10, msg=f"{seed}: {fields}, {size}")
