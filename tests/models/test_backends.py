"""All attention backends on random geometries of two and three axes: equal values and gradients.

Uninitialized memory is filled with NaN, so that a result that was never written cannot pass by luck.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from swinv2_train.models import SwinTransformerV2, drop_path_noise
from swinv2_train.models.attention.backends import BACKENDS
from swinv2_train.models.attention.contract import AttentionOptions
from swinv2_train.models.attention.sequential import plan_chunks
from tests.models.golden import fill_parameters, golden_config

NUM_GEOMETRIES = 320
"""Three quarters of them have two axes, the others three."""
NUM_MODELS = 10


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors hold NaN until something is written to them."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def draw_geometry(seed):
    """Window, windows per side of the map, shift, heads, channels of a head, batch, padding."""
    draw = random.Random(seed)
    window = (draw.choice([1, 2, 3, 4]), draw.choice([1, 2, 3, 4]))
    counts = (draw.choice([1, 2, 3]), draw.choice([1, 2, 2]))
    if seed % 4 == 3:
        window, counts = (draw.choice([1, 2, 2, 3]), *window), (draw.choice([1, 2, 3]), *counts)
    shifts = [
        (0, side // 2, (side + 1) // 2) if count > 1 and side > 1 else (0,)
        for side, count in zip(window, counts, strict=True)
    ]
    shift = tuple(draw.choice(choices) for choices in shifts)
    padding = tuple(draw.choice([0, 0, draw.randrange(side)]) for side in window)
    return window, counts, shift, draw.choice([1, 2, 3]), draw.randint(1, 4), draw.choice([1, 2, 2, 3]), padding


def draw_arguments(seed):
    """Leaf tensors qkv, scale (None for the dot product) and table; window, shift, and a gradient of the result."""
    window, counts, shift, heads, dim, batch, padding = draw_geometry(seed)
    generator = torch.Generator().manual_seed(seed)
    padded = tuple(side * count for side, count in zip(window, counts, strict=True))
    qkv = torch.randn(batch, *padded, 3 * heads * dim, generator=generator, dtype=torch.float64)
    for axis, (side, count) in enumerate(zip(padded, padding, strict=True), 1):
        padded_tokens = qkv.narrow(axis, side - count, count)
        padded_tokens[..., heads * dim : 2 * heads * dim] = 0  # a padding token has the zero key
    cosine = seed % 8 in (1, 3, 4, 6)  # half of the geometries with two axes, and half of those with three
    scale = 1 + 30 * torch.rand(heads, generator=generator, dtype=torch.float64) if cosine else None
    table = 16 * torch.rand(heads, *(2 * side - 1 for side in window), generator=generator, dtype=torch.float64)
    gradient = torch.randn(batch, *padded, heads * dim, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        corner = (slice(None), *(slice(1) for _ in window))
        gradient = gradient[corner].expand_as(gradient)  # such as that of a mean over the map
    leaves = [None if leaf is None else leaf.requires_grad_() for leaf in (qkv, scale, table)]
    return leaves, window, shift, gradient


def chunk_mib(seed):
    """A memory bound per geometry; together they make chunks of all kinds."""
    return (0.0008, 0.002, 0.004, 0.01, 0.03, 64.0)[seed // 2 % 6]


def values_and_gradients(backend, seed):
    leaves, window, shift, gradient = draw_arguments(seed)
    out = BACKENDS[backend](*leaves, window, shift, AttentionOptions(8.0, chunk_mib(seed)))
    return [out, *torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], gradient)]


@pytest.mark.slow
@pytest.mark.parametrize("tenth", range(10))
def test_backends_agree_on_random_geometries(tenth):
    for seed in range(tenth, NUM_GEOMETRIES, 10):
        expected = values_and_gradients("reference", seed)
        for name in BACKENDS:
            for ours, reference in zip(values_and_gradients(name, seed), expected, strict=True):
                message = f"{name}, seed {seed}, {draw_geometry(seed)}"
                assert reference.isfinite().all(), message
                torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-10, msg=message)


def test_the_random_geometries_cover_the_corners():
    seen = Counter()
    for seed in range(NUM_GEOMETRIES):
        window, counts, shift, heads, _, batch, padding = draw_geometry(seed)
        masked = any(shift)
        number = batch * math.prod(counts)
        for backward in (False, True):
            budget = chunk_mib(seed) * 2**20
            plan = plan_chunks(number, heads, window, budget, 8, masked=masked, backward=backward)
            seen["part of the heads"] += plan.heads < heads and plan.windows == number
            seen["part of the windows"] += 1 < plan.windows < number
            seen["part of the rows"] += plan.queries[0] < window[0]
            seen["one chunk"] += (plan.windows, plan.heads, plan.queries) == (number, heads, window)
            if len(window) == 3:
                seen["clip: part of the frames"] += plan.queries[1:] == window[1:] and plan.queries[0] < window[0]
                seen["clip: part of the rows of a frame"] += plan.queries[1] < window[1]
        if len(window) == 3:
            seen["clip: a window of one frame"] += window[0] == 1 < counts[0]
            seen["clip: as long as the map"] += counts[0] == 1 < window[0]
            seen["clip: shifted in time only"] += shift[0] > 0 and not any(shift[1:])
            seen["clip: shifted in space only"] += shift[0] == 0 and any(shift[1:])
            seen["clip: shifted in both"] += shift[0] > 0 and any(shift[1:])
            seen["clip: padded in time"] += padding[0] > 0
            seen["clip: cosine"] += draw_arguments(seed)[0][1] is not None
            continue
        seen["not square"] += window[0] != window[1] and batch > 1
        seen["width 1"] += window[1] == 1 < window[0] and batch > 1 and number > batch
        seen["height 1"] += window[0] == 1 < window[1] and batch > 1 and number > batch
        seen["one token"] += window == (1, 1)
        seen["as tall as the map"] += counts[0] == 1 < counts[1]
        seen["as wide as the map"] += counts[1] == 1 < counts[0]
        seen["shifted along one side"] += masked and not all(shift)
        seen["shifted along both"] += all(shift)
        seen["padded"] += any(padding)
    assert all(count >= (5 if "clip" in kind else 10) for kind, count in seen.items()), seen


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
    for backend in BACKENDS:
        checkpointing = seed % 4 // 2 if backend == "sequential" else 0
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
