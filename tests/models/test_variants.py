"""The blocks that the paper compares its own with: other norms, other scores, other position biases."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import (
    NORM_PLACEMENTS,
    POSITION_BIASES,
    SIMILARITIES,
    count_parameters,
    stage_geometry,
    table_windows,
)
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.config.tasks import SimMIMConfig
from swinv2_train.models import (
    MaskedImageModel,
    SwinTransformerV2,
    drop_path_noise,
    init_weights,
)
from swinv2_train.models.attention.backends import BACKENDS
from swinv2_train.models.attention.window_attention import WindowAttention
from swinv2_train.models.geometry import expand_bias, resize_table
from tests.models.golden import fill_parameters, golden_config
from tests.models.plain import plain_features

ALL = list(itertools.product(NORM_PLACEMENTS, SIMILARITIES, POSITION_BIASES))
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
)


def fields(placement="res-post", similarity="cosine", bias="log-cpb"):
    return {"norm_placement": placement, "similarity": similarity, "position_bias": bias}


def filled(resolution=(64, 64), dtype=torch.float64, **overrides):
    model = SwinTransformerV2(golden_config(**overrides), resolution).to(dtype)
    fill_parameters(model)
    return model


def number_of_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("placement", "similarity", "bias", "pretrained"),
    [
        ("res-post", "dot", "table", 0),
        ("res-post", "cosine", "linear-cpb", 0),
        ("res-post", "cosine", "table", [3, 2, 2, 1]),  # every table is interpolated
        ("pre", "dot", "table", 0),
        ("pre", "cosine", "log-cpb", 0),
        ("post", "dot", "linear-cpb", 0),
        ("post", "cosine", "table", 0),
        ("sandwich", "dot", "log-cpb", 0),
        ("sandwich", "cosine", "linear-cpb", 0),
    ],
)
def test_a_variant_gives_what_its_plain_definition_gives(placement, similarity, bias, pretrained):
    """On an image that divides nothing, with shifted windows, windows that exceed the map, and extra norms."""
    size, window = (21, 30), (2, 3)
    model = filled(
        size,
        embed_dim=8,
        depths=[2, 1, 1, 2],
        num_heads=[1, 2, 2, 4],
        window=[list(window)] * 4,
        pretrained_window=pretrained,
        extra_norm_period=2,
        **fields(placement, similarity, bias),
    ).eval()
    config = golden_config(window=[list(window)] * 4, pretrained_window=pretrained)
    image = torch.randn(3, *size, dtype=torch.float64)
    with torch.no_grad():
        actual = model(image.unsqueeze(0))
        expected = plain_features(
            model.state_dict(),
            image,
            4,
            [2, 1, 1, 2],
            [1, 2, 2, 4],
            window,
            placement=placement,
            linear=bias == "linear-cpb",
            table_windows=table_windows(config, size) if bias == "table" else None,
        )
    for ours, plain in zip(actual, expected, strict=True):
        assert plain.isfinite().all()
        torch.testing.assert_close(ours[0], plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("similarity", "bias"), itertools.product(SIMILARITIES, POSITION_BIASES))
def test_backends_agree_in_value_and_gradient(similarity, bias, device):
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64, device=device)
    results = []
    for backend in BACKENDS:
        model = filled(
            depths=[2, 1, 1, 1],
            pretrained_window=[3, 4, 4, 2],
            attention=backend,
            sequential_chunk_mib=0.01,
            **fields("pre", similarity, bias),
        ).to(device)
        features = model(images)
        sum(feature.square().mean() for feature in features).backward()
        results.append((features, {name: parameter.grad for name, parameter in model.named_parameters()}))
    expected, expected_gradients = results[0]
    for name, gradient in expected_gradients.items():
        assert gradient.norm() > 0, name
    for features, gradients in results[1:]:
        for ours, reference in zip(features, expected, strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-10)
        for name, reference in expected_gradients.items():
            torch.testing.assert_close(gradients[name], reference, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", ["log-cpb", "table"])
def test_bfloat16_stays_close_to_float32(backend, bias):
    """A table starts around 0 and the bias of a network around 8: rounding either there must not cost anything."""
    torch.manual_seed(0)
    narrow = WindowAttention(
        32, 2, (4, 4), backend=backend, chunk_mib=1.0, similarity="dot", position_bias=bias
    ).bfloat16()
    fill_parameters(narrow)
    wide = WindowAttention(32, 2, (4, 4), backend="reference", chunk_mib=1.0, similarity="dot", position_bias=bias)
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(2, 8, 8, 32).bfloat16()
    for window in ((4, 4), (8, 8)):
        out, reference = narrow(x, window, (0, 0)), wide(x.float(), window, (0, 0))
        assert out.dtype == torch.bfloat16
        assert (out.float() - reference).norm() <= 0.01 * reference.norm()


def test_a_small_table_survives_the_half_precision_mask(monkeypatch):
    """Subtracting the 8 that a network's bias starts at would leave steps of 0.03 to 0.06 of a table around 0."""
    masks, original = [], F.scaled_dot_product_attention

    def spy(*args, attn_mask, **kwargs):
        masks.append(attn_mask)
        return original(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    module = make_table(window=(4, 4), dtype=torch.bfloat16)
    with torch.no_grad():
        module.relative_position_bias_table.copy_(0.02 * torch.randn(49, 3))
    module(torch.randn(1, 4, 4, 12).bfloat16(), (4, 4), (0, 0))
    expected = expand_bias(module.position_table((4, 4)), (4, 4))
    assert torch.equal(masks[0][0].float(), expected)  # a bfloat16 parameter passes through float32 unchanged


@pytest.mark.parametrize(("placement", "similarity", "bias"), ALL)
def test_parameters_by_the_closed_form(placement, similarity, bias):
    size = (50, 70)
    for pretrained in (0, [[3, 2], 0, 5, [0, 4]])[: 2 if bias == "table" else 1]:
        config = golden_config(
            depths=[1, 2, 3, 1],
            window=[[3, 5], 4, 7, 2],
            pretrained_window=pretrained,
            mlp_ratio=2.3,
            extra_norm_period=2,
            absolute_position=True,
            **fields(placement, similarity, bias),
        )
        with torch.device("meta"):
            model = MaskedImageModel(config, size)
        made = Config(model=config, task=SimMIMConfig(), data=DataConfig(resolution=list(size)))
        assert number_of_parameters(model) == made.task.describe(made).parameters
        assert number_of_parameters(model.encoder) == count_parameters(config, size)


@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
def test_initial_weights(placement):
    """Only res-post-norm starts at 0, and only there a block starts as the identity."""
    with torch.device("meta"):
        model = MaskedImageModel(golden_config(**fields(placement, "dot", "table")), (64, 64))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    init_weights(model, torch.Generator().manual_seed(0))
    named = dict(model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in named.values())
    assert not any("logit_scale" in name or "cpb_mlp" in name for name in named)
    norms = {name: parameter for name, parameter in named.items() if ".norm1" in name or ".norm2" in name}
    assert len(norms) == 8 * (8 if placement == "sandwich" else 4)
    for name, parameter in norms.items():
        assert (parameter == float(name.endswith("weight") and placement != "res-post")).all(), name
    table = named["encoder.layers.0.blocks.0.attn.relative_position_bias_table"]
    assert table.shape == (49, 1)
    assert table.std().item() == pytest.approx(0.02, rel=0.4)
    x = torch.randn(2, 9, 10, 24)
    assert torch.equal(model.encoder.layers[0](x), x) == (placement == "res-post")


@pytest.mark.parametrize("placement", NORM_PLACEMENTS)
def test_a_dropped_branch_leaves_the_main_branch(placement):
    model = filled(drop_path=0.7, **fields(placement, "dot", "table")).train()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    dropped = torch.zeros(1, model.num_blocks, 2)
    actual = model(images, noise=dropped)[0]  # block 0 has rate 0, block 1 loses both branches
    first, second = model.layers[0].blocks
    expected = first(model.patch_embed(images))
    if placement == "post":
        expected = second.norm2(second.norm1(expected))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_checkpointing_changes_no_gradient(placement):
    images = torch.randn(2, 3, 40, 48)
    results = []
    for period in (0, 1):
        overrides = fields(placement, "dot", "table")
        model = filled(
            dtype=torch.float32, depths=[2, 1, 1, 1], drop_path=0.6, checkpointing=period, **overrides
        ).train()
        features = model(images, noise=drop_path_noise(torch.arange(2), model.num_blocks))
        sum(feature.square().sum() for feature in features).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.slow
def test_a_variant_can_be_compiled():
    """In one graph, the interpolation of the table included."""
    torch._dynamo.reset()
    model = filled(dtype=torch.float32, pretrained_window=3, **fields("sandwich", "dot", "table"))
    block = model.layers[0].blocks[1]
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    results = []
    for function in (block, compiled):
        x = torch.linspace(-1, 1, 2 * 10 * 9 * 24).view(2, 10, 9, 24).requires_grad_()
        function(x).square().sum().backward()
        table = block.attn.relative_position_bias_table
        results.append((x.grad, table.grad))
        table.grad = None
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager)


def make_table(window=(4, 3), heads=3, dtype=torch.float64):
    module = WindowAttention(
        12, heads, window, backend="sdpa", chunk_mib=1.0, similarity="dot", position_bias="table"
    ).to(dtype)
    fill_parameters(module)
    return module


def test_a_table_at_its_own_window_is_the_parameter():
    module = make_table()
    # The order of Swin V1: entry (row offset + 3) * 5 + (column offset + 2).
    expected = module.relative_position_bias_table.view(7, 5, 3).permute(2, 0, 1)
    assert torch.equal(module.position_table((4, 3)), expected)


@pytest.mark.parametrize("window", [(7, 5), (2, 3), (4, 8), (1, 1)])
def test_a_table_at_another_window_is_interpolated_as_torch_does(window):
    module = make_table()
    stored = module.relative_position_bias_table
    weights = torch.randn(3, 2 * window[0] - 1, 2 * window[1] - 1, dtype=torch.float64)
    actual = module.position_table(window)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), stored)
    grid = stored.t().reshape(1, 3, 7, 5)
    expected = F.interpolate(grid, weights.shape[1:], mode="bicubic", align_corners=False)[0]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), stored)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(actual[:, window[0] - 1, window[1] - 1], grid[0, :, 3, 2])  # offset 0 stays


def test_a_bfloat16_table_is_interpolated_in_float32():
    narrow, rounded = make_table(dtype=torch.bfloat16), make_table(dtype=torch.float32)
    rounded.load_state_dict(narrow.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = narrow.position_table((8, 8))
    assert table.dtype == torch.float32
    assert torch.equal(table, rounded.position_table((8, 8)))
    stored = torch.randn(2, 7, 5)
    assert resize_table(stored, (4, 3)) is stored


def test_the_size_of_a_table():
    config = golden_config(window=8, position_bias="table")
    assert table_windows(config, (64, 32)) == [(8, 8), (8, 4), (4, 2), (2, 1)]
    assert table_windows(config, (256, 256)) == [(8, 8)] * 4
    config.pretrained_window = [[6, 0], 5, 6, 9]
    assert table_windows(config, (64, 32)) == [(6, 8), (5, 5), (6, 6), (9, 9)]
    config.pretrained_window = [12, 12, 12, 6]
    assert table_windows(config) == [(12, 12), (12, 12), (12, 12), (6, 6)]  # independent of the resolution
    config.pretrained_window = [12, 12, 12, 0]
    for build in (table_windows, SwinTransformerV2, count_parameters):
        with pytest.raises(ConfigError, match=r"^model.position_bias='?table'?.*needs the resolution"):
            build(config)


@pytest.mark.slow
@pytest.mark.parametrize("bias", POSITION_BIASES)
def test_the_same_weights_at_another_window(bias):
    """Of a model trained at 64 pixels with window 4, at 128 pixels with window 8: no parameter changes its shape."""
    overrides = {"depths": [1, 1, 1, 1], **fields("pre", "cosine", bias)}
    trained = filled((64, 64), window=4, **overrides).eval()
    effective = [list(stage.window) for stage in stage_geometry(golden_config(window=4), 64, 64)]
    assert effective == [[4, 4], [4, 4], [4, 4], [2, 2]]

    again = filled((128, 128), window=8, pretrained_window=effective, **overrides).eval()
    again.load_state_dict(trained.state_dict())
    same_window = filled((128, 128), window=4, pretrained_window=effective, **overrides).eval()
    same_window.load_state_dict(trained.state_dict())
    small, large = (torch.randn(1, 3, side, side, dtype=torch.float64) for side in (64, 128))
    torch.testing.assert_close(same_window(small)[-1], trained(small)[-1], rtol=0, atol=1e-12)
    assert again(large)[-1].isfinite().all()
    assert not torch.allclose(again(large)[-1], same_window(large)[-1])

    attention = again.layers[0].blocks[0].attn
    own, larger = attention.position_table((4, 4)), attention.position_table((8, 8))
    assert larger.shape[1:] == (15, 15)
    torch.testing.assert_close(own, trained.layers[0].blocks[0].attn.position_table((4, 4)))
    if bias == "linear-cpb":  # offset 3 of 3 before, offset 6 of the 7 now, is twice as far
        torch.testing.assert_close(larger[:, 4:11, 4:11], own)


@pytest.mark.parametrize("shift", [0, 2])
def test_pre_norm_dot_and_table_are_the_block_of_swin_v1(shift):
    timm_swin = pytest.importorskip("timm.models.swin_transformer")
    ours = filled(dtype=torch.float32, **fields("pre", "dot", "table")).layers[0].blocks[1 if shift else 0]
    theirs = timm_swin.SwinTransformerBlock(24, (8, 12), num_heads=1, window_size=4, shift_size=shift)
    state = ours.state_dict()
    q_bias, v_bias = state.pop("attn.q_bias"), state.pop("attn.v_bias")
    state["attn.qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
    theirs.load_state_dict(state)
    x = torch.randn(2, 8, 12, 24)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
