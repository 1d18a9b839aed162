"""Initial weights: their distributions, their random stream, and that nothing is left without a value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swinv2_train.errors import RunError
from swinv2_train.exit_codes import WRONG_USE
from swinv2_train.models import ImageClassifier, MaskedImageModel, SwinTransformerV2, init_weights
from swinv2_train.models.init import draw_uniform
from tests.models.golden import golden_config

CONFIG = golden_config(extra_norm_period=2, absolute_position=True)


def masked_image_model():
    return MaskedImageModel(CONFIG, resolution=(64, 64))


def classifier():
    return ImageClassifier(CONFIG, 5, resolution=(64, 64))


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def from_meta(build):
    """The model without any values, as a run builds it: its memory holds whatever lay there before."""
    with torch.device("meta"):
        model = build()
    return model.to_empty(device="cpu")


@pytest.mark.parametrize("bias", ["log-cpb", "table"])
def test_the_random_stream_is_one_draw_after_the_other_in_the_order_of_the_parameters(bias):
    """Checkpoint-free runs are compared by their seed: another order would give every seed other weights."""
    config = golden_config(extra_norm_period=2, absolute_position=True, position_bias=bias)
    model = from_meta(lambda: MaskedImageModel(config, (64, 64)))
    init_weights(model, seeded())
    generator, constant = seeded(), 0
    for name, parameter in model.named_parameters():
        if name.startswith("decoder") or "patch_embed.proj" in name:
            fan_in = CONFIG.embed_dim * 8 if name.startswith("decoder") else 3 * 16
            expected = torch.empty(parameter.shape).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        elif name.endswith(("bias", "logit_scale")) or "norm" in name:
            constant += 1
            continue
        else:
            expected = torch.empty(parameter.shape).normal_(std=0.02, generator=generator)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0, msg=name)
    assert constant > 50


class EveryLayer(nn.Module):
    """The layers that a head may be made of."""

    def __init__(self):
        super().__init__()
        norms = [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4)]
        self.layers = nn.ModuleList(
            [
                nn.GroupNorm(2, 4),
                nn.LayerNorm((3, 4)),
                nn.LayerNorm(4, bias=False),
                nn.LayerNorm(4, elementwise_affine=False),
                nn.RMSNorm(4),
                *norms,
                nn.BatchNorm2d(4, affine=False),
                nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
                nn.Linear(4, 3),
                nn.Linear(4, 3, bias=False),
                *(kind(4, 6, 3, bias=bias) for kind in self.convolutions for bias in (True, False)),
                nn.Embedding(5, 4, padding_idx=1),
                nn.EmbeddingBag(5, 4),
            ]
        )

    convolutions = (
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    )  # fmt: skip


def test_every_layer_gets_its_initial_values():
    model = from_meta(EveryLayer)
    init_weights(model, seeded())
    fresh = EveryLayer()
    for (name, tensor), (_, own) in zip(model.state_dict().items(), fresh.state_dict().items(), strict=True):
        layer = model.get_submodule(name.rpartition(".")[0])
        assert tensor.isfinite().all(), name
        assert tensor.dtype == own.dtype
        if isinstance(layer, nn.Linear | nn.Embedding | nn.EmbeddingBag):
            assert not tensor.any() if name.endswith("bias") else 0.005 < tensor.std() < 0.04, name
        elif isinstance(layer, EveryLayer.convolutions):  # the range of torch's own
            bound = layer.weight[0].numel() ** -0.5
            assert 0.6 * bound < tensor.abs().max() <= bound, name
            assert 0.6 * bound < own.abs().max() <= bound, name
        else:
            assert torch.equal(tensor, own), f"{name}: ones, zeros and counts, as torch has them"
    assert not model.layers[-2].weight[1].any(), "the padding index"


class Scaled(nn.Module):
    """A module with values of its own, and a method that sets some of them."""

    def __init__(self, *forgotten):
        super().__init__()
        self.forgotten = forgotten
        self.gain = nn.Parameter(torch.empty(2, 3))
        self.register_buffer("table", torch.empty(4), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))
        self.inner = nn.Linear(3, 2)

    def init_parameters(self, generator):
        for name, tensor in (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)):
            if name not in self.forgotten:
                draw_uniform(tensor, generator, 0.5) if name == "gain" else tensor.fill_(1)


def test_a_module_may_bring_its_own_rule():
    model = from_meta(lambda: nn.Sequential(nn.Linear(2, 3), Scaled()))
    init_weights(model, seeded())
    own = model[1]
    assert own.table.tolist() == [1, 1, 1, 1]
    assert (own.steps.item(), own.seen.tolist()) == (1, [True, True])
    assert own.inner.weight.std() < 0.1
    generator = seeded()
    torch.empty(3, 2).normal_(generator=generator)  # before it came the linear layer
    torch.testing.assert_close(own.gain.detach(), torch.empty(2, 3).uniform_(-0.5, 0.5, generator=generator))


class Bare(nn.Module):
    """A parameter, a buffer, and a plain tensor, without any rule."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                setattr(self, name, tensor)
            else:
                self.register_buffer(name, tensor, persistent=False)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(2, 2)
        self.offsets = torch.arange(3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Bare(gamma=nn.Parameter(torch.empty(2))),
            "no rule initializes parameter 1.gamma .*: give Bare a",
        ),
        (lambda: Bare(grid=torch.zeros(2)), "no rule initializes buffer 1.grid .*: give Bare a method init_param"),
        (lambda: Bare(count=torch.zeros((), dtype=torch.int64)), "no rule initializes buffer 1.count "),
        (
            lambda: nn.MultiheadAttention(4, 2),
            "parameter 1.in_proj_weight .*: give MultiheadAttention a",
        ),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "parameter 1.parametrizations.weight.orig",
        ),
        (lambda: Scaled("gain"), "parameter 1.gain .*: give Scaled a method"),
        (lambda: Scaled("table"), "buffer 1.table "),
        (lambda: Scaled("steps"), "buffer 1.steps "),
        (lambda: Scaled("seen"), "buffer 1.seen "),
        (Plain, "tensor 1.offsets of the model is neither a parameter nor a buffer: use register_buffer"),
    ],
)
def test_what_no_rule_sets_is_refused_by_name(build, message):
    model = from_meta(lambda: nn.Sequential(nn.Linear(2, 3), build()))
    with pytest.raises(RunError, match=message) as caught:
        init_weights(model, seeded())
    assert caught.value.exit_code == WRONG_USE
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_fake_tensors_are_followed_without_their_values():
    with FakeTensorMode():
        init_weights(classifier())
        with pytest.raises(RunError, match=r"no rule initializes parameter 0\.gamma "):
            init_weights(nn.Sequential(Bare(gamma=nn.Parameter(torch.empty(2)))))


def test_a_model_on_the_meta_device_is_left_alone():
    with torch.device("meta"):
        model = nn.Sequential(Plain(), Bare(gamma=nn.Parameter(torch.empty(2))))
    state = torch.get_rng_state()
    init_weights(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_follow_the_seed_and_nothing_else():
    first, second, other = masked_image_model(), masked_image_model(), masked_image_model()
    init_weights(first, seeded())
    torch.rand(17)
    init_weights(second, seeded())
    init_weights(other, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.mask_token, other.mask_token)


def test_half_precision_weights_are_the_rounded_float32_ones():
    wide, narrow = masked_image_model(), masked_image_model().bfloat16()
    init_weights(wide, seeded())
    init_weights(narrow, seeded())
    for ours, reference in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(ours, reference.bfloat16())


@pytest.mark.parametrize("build", [masked_image_model, classifier])
def test_distributions_are_the_official_ones(build):
    """Also of a model that was just built, without a call to `init_weights`."""
    torch.manual_seed(0)
    for name, parameter in build().named_parameters():
        if name.endswith("logit_scale"):
            torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, math.log(10)))
        elif ".norm1." in name or ".norm2." in name:
            assert not parameter.any(), name
        elif "norm." in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.startswith("decoder") or "patch_embed.proj" in name:
            fan_in = CONFIG.embed_dim * 8 if name.startswith("decoder") else 3 * 16
            assert parameter.abs().max() <= fan_in**-0.5, name
            assert parameter.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.3), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name
            assert abs(parameter.mean().item()) < 0.08 / parameter.numel() ** 0.5, name


def test_every_block_starts_as_the_identity():
    model = SwinTransformerV2(golden_config())
    x = torch.randn(2, 9, 10, 24)
    assert torch.equal(model.layers[0](x), x)
