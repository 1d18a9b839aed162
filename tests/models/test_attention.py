"""The backends are one function: values, gradients, precision, and what they never build."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_train.config.model import ATTENTION_BACKENDS
from swinv2_train.models.attention.backends import BACKENDS
from swinv2_train.models.attention.contract import AttentionOptions
from swinv2_train.models.attention.position_bias import BIAS_RANGE
from swinv2_train.models.attention.reference import unit_vectors
from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.geometry import expand_bias
from tests.models.golden import fill_parameters
from tests.models.memory import LiveBytes
from tests.models.plain import places, plain_mask, plain_scores, spread


def bound(name, chunk_mib=64.0, time_padding=0):
    return partial(BACKENDS[name], options=AttentionOptions(BIAS_RANGE / 2, chunk_mib, time_padding))


reference_attention, sdpa_attention, tiny_chunks = bound("reference"), bound("sdpa"), bound("sequential", 0.002)
ATTEND = {name: bound(name) for name in BACKENDS} | {"sequential, many chunks": tiny_chunks}
CASES = {
    "square": ((8, 8), (4, 4), (0, 0)),
    "square, shifted": ((8, 12), (4, 4), (2, 2)),
    "non-square": ((6, 8), (3, 4), (0, 0)),
    "non-square, shifted": ((6, 8), (3, 4), (1, 2)),
    "shifted along one side": ((4, 8), (4, 2), (0, 1)),
    "one token": ((3, 2), (1, 1), (0, 0)),
    "clip": ((2, 6, 4), (2, 3, 2), (0, 0, 0)),
    "clip, shifted": ((4, 4, 6), (2, 2, 3), (1, 1, 1)),
    "clip, shifted in time": ((6, 3, 2), (3, 3, 1), (2, 0, 0)),
    "clip, shifted in space": ((3, 1, 6), (3, 1, 2), (0, 0, 1)),
    "clip, one frame at a time": ((3, 4, 4), (1, 2, 4), (0, 1, 0)),
    "clip of one frame": ((1, 6, 8), (1, 3, 4), (0, 1, 2)),
}
"""Sides of the map, window, shift."""


def arguments(case, *, batch=2, heads=3, d=4, dtype=torch.float64):
    """Leaf tensors qkv, scale, table, and then window and shift."""
    padded, window, shift = CASES[case]
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(batch, *padded, 3 * heads * d, generator=generator, dtype=torch.float64).to(dtype)
    scale = 1 + 30 * torch.rand(heads, generator=generator, dtype=torch.float64)
    table = 16 * torch.rand(heads, *(2 * side - 1 for side in window), generator=generator, dtype=torch.float64)
    if dtype in (torch.float16, torch.bfloat16):
        scale, table = scale.float(), table.float()
    else:
        scale, table = scale.to(dtype), table.to(dtype)
    return [tensor.requires_grad_() for tensor in (qkv, scale, table)], window, shift


def values_and_gradients(attend, case, **options):
    leaves, window, shift = arguments(case, **options)
    out = attend(*leaves, window, shift)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def pair_by_pair(qkv, scale, table, window, shift, time_padding=0):
    """The definition: every window lists its tokens, every pair of tokens has its own score, bias and mask."""
    padded = qkv.shape[1:-1]
    bias, out = spread(table, window), torch.zeros_like(qkv[..., : qkv.shape[-1] // 3])
    for corner in itertools.product(*(range(0, side, extent) for side, extent in zip(padded, window, strict=True))):
        tokens = [tuple(a + b for a, b in zip(corner, place, strict=True)) for place in places(window)]
        # The shift carried the last `shift` indices of an axis around the end of the map.
        wrapped = [[i >= side - by for i, side, by in zip(token, padded, shift, strict=True)] for token in tokens]
        late = [(token[0] + shift[0]) % padded[0] >= padded[0] - time_padding for token in tokens]
        mask = qkv.new_tensor(plain_mask(wrapped, late))
        values = torch.stack([qkv[(slice(None), *token)] for token in tokens], 1)
        parts = values.unflatten(-1, (3, table.shape[0], -1)).permute(2, 0, 3, 1, 4)
        result = plain_scores(*parts, scale, bias + mask).transpose(1, 2).flatten(2)
        for index, token in enumerate(tokens):
            out = out.index_put((torch.arange(len(out)), *map(torch.tensor, token)), result[:, index])
    return out


def test_the_table_of_backends_is_the_list_of_the_config():
    assert tuple(BACKENDS) == ATTENTION_BACKENDS


@pytest.mark.parametrize("case", CASES)
def test_backends_agree_with_the_definition_in_value_and_gradient(case):
    expected = values_and_gradients(pair_by_pair, case)
    for name, attend in ATTEND.items():
        for ours, plain in zip(values_and_gradients(attend, case), expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("case", "padding"),
    [("clip", 1), ("clip, shifted", 1), ("clip, shifted in time", 2), ("clip, shifted in space", 2)],
)
def test_padding_in_time_is_never_attended_to(case, padding):
    expected = values_and_gradients(partial(pair_by_pair, time_padding=padding), case)
    time, by = CASES[case][0][0], CASES[case][2][0]
    real = [index for index in range(time) if (index + by) % time < time - padding]
    late = [index for index in range(time) if index not in real]
    for name, chunk_mib in (("reference", 64.0), ("sdpa", 64.0), ("sequential", 64.0), ("sequential", 0.002)):
        attend = bound(name, chunk_mib, padding)
        out, *gradients = values_and_gradients(attend, case)
        for ours, plain in zip([out, *gradients], expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10, msg=name)
        # The padding may be anything, and gets no gradient from the frames.
        leaves, window, shift = arguments(case)
        with torch.no_grad():
            leaves[0][:, late] += 7
        changed = attend(*leaves, window, shift)
        assert torch.equal(changed[:, real], out[:, real])
        (gradient,) = torch.autograd.grad(changed[:, real].square().sum(), leaves[0])
        assert not gradient[:, late].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ATTEND)
def test_a_clip_of_one_frame_is_an_image_to_the_bit(backend, dtype):
    clip = values_and_gradients(ATTEND[backend], "clip of one frame", dtype=dtype)
    image = values_and_gradients(ATTEND[backend], "non-square, shifted", dtype=dtype)
    for ours, reference in zip(clip, image, strict=True):
        assert torch.equal(ours.view_as(reference), reference)


@pytest.mark.parametrize("backend", ATTEND)
def test_bfloat16_stays_close_to_float32(backend):
    attend = ATTEND[backend]
    case = "non-square, shifted"
    expected = values_and_gradients(
        lambda qkv, *rest: reference_attention(qkv.float(), *rest), case, dtype=torch.bfloat16
    )
    actual = values_and_gradients(attend, case, dtype=torch.bfloat16)
    assert actual[0].dtype == torch.bfloat16
    for ours, reference in zip(actual, expected, strict=True):
        assert (ours.float() - reference.float()).norm() <= 0.02 * reference.float().norm()


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2)])
def test_sequential_gives_the_gradients_that_are_wanted(frozen):
    def gradients(attend):
        leaves, window, shift = arguments("square, shifted")
        for index in frozen:
            leaves[index].requires_grad_(False)
        attend(*leaves, window, shift).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for ours, reference in zip(gradients(tiny_chunks), gradients(reference_attention), strict=True):
        assert (ours is None) == (reference is None)
        if ours is not None:
            torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-10)


def test_sequential_keeps_no_graph_without_gradients():
    leaves, window, shift = arguments("square, shifted")
    with torch.no_grad():
        out = tiny_chunks(*leaves, window, shift)
    assert not out.requires_grad
    torch.testing.assert_close(out, reference_attention(*leaves, window, shift).detach())


@pytest.fixture
def sdpa_masks(monkeypatch):
    """The additive masks that torch's fused attention was called with."""
    masks, original = [], F.scaled_dot_product_attention

    def spy(*args, attn_mask, **kwargs):
        masks.append(attn_mask)
        return original(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return masks


@pytest.mark.parametrize("attend", [reference_attention, sdpa_attention])
def test_no_mask_is_expanded_over_the_batch(attend, sdpa_masks):
    heads, batch, windows, tokens = 3, 7, 6, 16
    leaves, window, shift = arguments("square, shifted", batch=batch, heads=heads)
    with LiveBytes() as live:
        attend(*leaves, window, shift)
    masks = [math.prod(shape) for dtype, shape in live.shapes if dtype == torch.bool and shape[-1] == tokens]
    assert max(masks) == windows * tokens**2
    assert all(mask.shape == (1, windows * heads, tokens, tokens) for mask in sdpa_masks)
    assert all(mask.is_contiguous() for mask in sdpa_masks)


def test_zero_keys_have_finite_gradients_in_float16():
    x = torch.zeros(2, 4, dtype=torch.float16, requires_grad=True)
    unit_vectors(x).sum().backward()
    assert x.grad.isfinite().all()
    leaves, window, shift = arguments("square", dtype=torch.float16)
    with torch.no_grad():
        leaves[0][:, :, 6:] = 0  # as in a padded column
    for attend in ATTEND.values():
        out = attend(*leaves, window, shift)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.float().sum(), leaves))


def make_attention(backend="reference", heads=3):
    module = WindowAttention(12, heads, (0, 0), backend=backend, chunk_mib=0.01)
    fill_parameters(module)
    return module


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_modules_agree_down_to_the_bias_network_and_the_scale(backend):
    reference, other = make_attention().double(), make_attention(backend).double()
    x = torch.randn(2, 6, 8, 12, dtype=torch.float64)
    for module in (reference, other):
        module(x, (3, 4), (1, 2)).square().sum().backward()
    for (name, ours), theirs in zip(other.named_parameters(), reference.parameters(), strict=True):
        assert theirs.grad.norm() > 0, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_the_scale_stops_at_100_and_then_has_no_gradient():
    module = make_attention()
    with torch.no_grad():
        module.logit_scale.copy_(torch.tensor([2.0, 4.6, 4.7]).view(3, 1, 1))
    scale = module.scale()
    torch.testing.assert_close(scale, torch.tensor([math.exp(2.0), math.exp(4.6), 100.0]))
    scale.sum().backward()
    assert module.logit_scale.grad.flatten().tolist() == pytest.approx([math.exp(2.0), math.exp(4.6), 0.0])


def test_keys_have_no_bias():
    module = make_attention()
    x = torch.randn(1, 4, 4, 12)
    with torch.no_grad():
        module.qkv.weight[12:24] = 0
        module.cpb_mlp[2].weight.zero_()
        out = module(x, (4, 4), (0, 0))
        # Without keys and position all scores of a query are equal: every token gets the mean of the values.
        mean = (x @ module.qkv.weight[24:].T + module.v_bias).mean(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(out, module.proj(mean).expand_as(out))


def test_the_bias_network_of_a_bfloat16_module_computes_in_float32():
    module = make_attention().bfloat16()
    rounded = make_attention()
    rounded.load_state_dict(module.state_dict())  # float32 copies of the rounded weights
    table = module.position_table((9, 7))
    assert table.dtype == torch.float32
    assert torch.equal(table, rounded.position_table((9, 7)))
    assert module.scale().dtype == torch.float32
    assert torch.equal(module.scale(), rounded.scale())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rounded.position_table((9, 7)), table)


def test_geometry_is_neither_state_nor_buffer():
    module = make_attention()
    module(torch.randn(1, 8, 8, 12), (4, 4), (2, 2))
    assert not list(module.buffers())
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


class IslandSpy(TorchDispatchMode):
    """Collects the dtypes that lengths, softmax and exponentials are computed in."""

    names = ("aten::linalg_vector_norm", "aten::_softmax", "aten::exp", "aten::exp_", "aten::sigmoid")

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in self.names:
            self.seen.setdefault(func._schema.name, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["reference", "sequential"])
@pytest.mark.parametrize("mode", ["bfloat16 module", "autocast"])
def test_islands_of_full_precision(mode, backend):
    module, x = make_attention(backend), torch.randn(2, 8, 8, 12)
    autocast = mode == "autocast"
    if not autocast:
        module, x = module.bfloat16(), x.bfloat16()
    with IslandSpy() as spy, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        # The backward pass is inside on purpose: it must not depend on where the training loop ends its autocast.
        module(x, (4, 4), (2, 2)).float().square().sum().backward()
    assert len(spy.seen) >= 4
    assert all(dtypes == {torch.float32} for dtypes in spy.seen.values()), spy.seen


def test_large_scales_survive_bfloat16():
    """Scores of +-100 rounded to bfloat16 would be off by a quarter, weights by 28%."""
    leaves, window, shift = arguments("square", dtype=torch.bfloat16)
    scale = torch.full_like(leaves[1], 100.0)
    wide = reference_attention(leaves[0].float(), scale, leaves[2], window, shift)
    for attend in (reference_attention, tiny_chunks):
        out = attend(leaves[0], scale, leaves[2], window, shift)
        assert (out.float() - wide).norm() <= 0.005 * wide.norm()
    fused = sdpa_attention(leaves[0], scale, leaves[2], window, shift)  # rounds its operands, not the scores
    assert (fused.float() - wide).norm() <= 0.05 * wide.norm()


def test_a_nearly_constant_bias_survives_the_half_precision_mask(sdpa_masks):
    """At the start of training the bias is 8 +- 0.05; bfloat16 around 8 has steps of 0.03 to 0.06."""
    leaves, window, shift = arguments("square", dtype=torch.bfloat16)
    offsets = 0.05 * torch.randn(leaves[2].shape)
    sdpa_attention(*leaves[:2], 8 + offsets, window, shift)
    assert sdpa_masks[0].dtype == torch.bfloat16
    torch.testing.assert_close(sdpa_masks[0][0].float(), expand_bias(offsets, window), rtol=0.004, atol=1e-6)


@pytest.mark.parametrize("attend", ATTEND.values(), ids=ATTEND)
def test_the_mask_is_minus_100_and_no_more(attend):
    """At the largest scale a masked pair of equal directions ties with an allowed pair of orthogonal ones."""
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    key = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    value = torch.arange(8, dtype=torch.float64).view(4, 2)
    qkv = torch.cat([query, key, value], dim=-1).view(1, 1, 4, 6)
    scale, table = torch.tensor([100.0], dtype=torch.float64), torch.zeros(1, 1, 7, dtype=torch.float64)
    mask = torch.tensor([[0, 0, -100, -100]] * 2 + [[-100, -100, 0, 0]] * 2, dtype=torch.float64)
    expected = torch.softmax(100 * query @ key.T + mask, dim=-1) @ value
    torch.testing.assert_close(expected, value.mean(0).expand(4, 2))  # a tie of all four keys
    torch.testing.assert_close(attend(qkv, scale, table, (1, 4), (0, 2)).view(4, 2), expected)
