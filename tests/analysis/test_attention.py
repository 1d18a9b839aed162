"""Attention maps: the weights that a block really uses, put back to the places of their tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from swinv2_train.analysis.attention import attention_figure, attention_maps, reached
from swinv2_train.config.model import ModelConfig
from swinv2_train.models import SwinTransformerV2
from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.geometry import from_windows, to_windows
from swinv2_train.tracking.figures import to_pil
from tests.evaluated import TINY, lively


@pytest.mark.parametrize(("similarity", "backend"), [("cosine", "sdpa"), ("dot", "sequential")])
@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
def test_the_weights_times_the_values_are_the_output(similarity: str, backend: str, shift: tuple[int, int]) -> None:
    attention = WindowAttention(8, 2, (4, 4), backend=backend, chunk_mib=1, similarity=similarity)
    lively(attention)
    x = torch.randn(2, 8, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weights = attention.weights(x, (4, 4), shift)
        assert weights.shape == (2, 2, 2, 16, 16)
        assert torch.allclose(weights.sum(dim=-1), torch.ones(()))
        values = x @ attention.qkv.weight[16:].T + attention.v_bias
        out = weights @ to_windows(values, (4, 4), 1, 2)[0]
        made = attention.proj(from_windows(out[None], (4, 4), (8, 4)))
        assert torch.allclose(made, attention(x, (4, 4), shift), atol=1e-5)


def plainly(weights: Tensor, queries: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """The same as `reached`, token by token; weights by window in rows, then token of the window in rows."""
    height, width = queries.shape
    padded = [-(-side // extent) * extent for side, extent in zip((height, width), window, strict=True)]
    found = torch.zeros(height, width)
    across = padded[1] // window[1]

    def place(y: int, x: int) -> tuple[int, int]:
        y, x = (y - shift[0]) % padded[0], (x - shift[1]) % padded[1]
        return y // window[0] * across + x // window[1], y % window[0] * window[1] + x % window[1]

    for y, x, v, u in itertools.product(range(height), range(width), range(height), range(width)):
        (own, query), (other, key) = place(y, x), place(v, u)
        if own == other:
            found[v, u] += queries[y, x] * weights[own, query, key]
    return found


@pytest.mark.parametrize(("sides", "shift"), [((4, 8), (0, 0)), ((4, 8), (2, 1)), ((5, 7), (0, 0)), ((5, 7), (1, 2))])
def test_attention_returns_to_the_tokens_it_is_paid_to(sides: tuple[int, int], shift: tuple[int, int]) -> None:
    window = (2, 4)
    generator = torch.Generator().manual_seed(3)
    count = -(-sides[0] // 2) * -(-sides[1] // 4)
    weights = torch.rand(count, 8, 8, generator=generator)
    queries = torch.rand(sides, generator=generator)
    assert torch.allclose(reached(weights, queries, window, shift), plainly(weights, queries, window, shift), atol=1e-6)


def test_maps_of_a_model_are_shares_and_every_backend_has_the_same() -> None:
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = {}
    for backend in ("reference", "sequential"):
        model = lively(SwinTransformerV2(ModelConfig(**TINY, attention=backend)))
        model.train()
        found[backend] = attention_maps(model, images, (0.99, 0.0))
        assert model.training
        assert not any(module._forward_pre_hooks for module in model.modules())
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2)]
    for one, other, size in zip(*found.values(), sizes, strict=True):
        assert one.received.shape == one.marked.shape == size
        assert torch.allclose(one.received, other.received, atol=1e-5)
        assert torch.allclose(one.marked, other.marked, atol=1e-5)
        if size != (4, 6):  # that map is padded, so part of the attention goes to padding
            assert one.received.mean().item() == pytest.approx(1, abs=1e-4)
            assert one.marked.sum().item() == pytest.approx(1, abs=1e-4)
    first = found["reference"][0].marked
    assert first[:4, 8:].sum().item() == pytest.approx(1, abs=1e-4)  # the window of the upper right corner
    assert attention_maps(model, images)[0].marked is None
    figure = attention_figure(
        [to_pil(images[0].sigmoid().numpy())], ["name"], [found["reference"]], (0.99, 0.0), "footer"
    )
    one_row = attention_figure([to_pil(images[0].sigmoid().numpy())], ["name"], [found["reference"]], None, "footer")
    assert figure.height > one_row.height + 100
