"""Segmenters: UPerNet as described, parameter counts of the paper's sizes, dropout by position, images of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, count_parameters, variant
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.models import InputError, Segmenter, drop_path_noise, init_weights
from swinv2_train.models.channel_dropout import channel_noise
from swinv2_train.models.necks import GroupNorm, group_count

TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window": 4}


def segmenter(classes: int = 5, model: dict[str, Any] | None = None, **task: Any) -> Segmenter:
    """A tiny segmenter with the seed's weights."""
    section = SegmentationConfig(**{"channels": 16, "auxiliary_channels": 8, **task})
    built = Segmenter(ModelConfig(**{**TINY, **(model or {})}), section, classes)
    init_weights(built, torch.Generator().manual_seed(0))
    return built


def count(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


@pytest.mark.parametrize(
    ("name", "total", "head", "auxiliary"),
    [
        ("swinv2_tiny", 60.00, 31_497_366, 923_798),
        ("swinv2_small", 81.38, 31_497_366, 923_798),
        ("swinv2_base", 121.43, 33_315_990, None),
        ("swinv2_large", 233.97, 36_953_238, None),
        ("swinv2_huge", 704.55, None, None),
        ("swinv2_giant", 3057.75, 55_139_478, 4_757_654),
    ],
)
def test_upernet_has_the_parameters_of_the_published_models(
    name: str, total: float, head: int | None, auxiliary: int | None
) -> None:
    with torch.device("meta"):
        model = Segmenter(variant(name), SegmentationConfig(), 150)
    assert round(count(model) / 1e6, 2) == total
    assert head in (None, count(model.decoder))
    assert auxiliary in (None, count(model.auxiliary))
    assert count(model.norms) == 2 * 7 * model.backbone.dims[0]


@pytest.mark.slow
def test_the_giant_at_640_is_laid_out_without_memory() -> None:
    """Forward in training on the device meta, with the backbone, the windows, and the classes of the recipe."""
    config = compose(["+experiment=ade20k_giant"])
    assert isinstance(config.task, SegmentationConfig)
    with torch.device("meta"):
        model = Segmenter(config.model, config.task, config.task.num_classes, (640, 640)).bfloat16().train()
        logits, auxiliary = model(torch.empty(2, 3, 640, 640, dtype=torch.bfloat16))
    assert (logits.shape, auxiliary.shape) == ((2, 150, 160, 160), (2, 150, 40, 40))
    assert logits.is_meta
    # Backbone, three norms, decoder, and auxiliary decoder.
    assert count(model) == count_parameters(config.model) + 2 * 7 * 512 + 55_139_478 + 4_757_654 == 3_057_747_980


class Described:
    """UPerNet from its description, with torch's own operations, on the parameters of a decoder."""

    def __init__(self, decoder: nn.Module) -> None:
        self.parameters = dict(decoder.named_parameters())

    def unit(self, x: Tensor, name: str) -> Tensor:
        weight = self.parameters[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        norm = [self.parameters[f"{name}.norm.{part}"] for part in ("weight", "bias")]
        return F.relu(F.group_norm(x, group_count(x.shape[1]), *norm))

    @staticmethod
    def enlarged(x: Tensor, factor: int, like: Tensor) -> Tensor:
        if factor > 1:
            x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        return x[:, :, : like.shape[2], : like.shape[3]]

    def upernet(self, maps: list[Tensor]) -> Tensor:
        last = maps[3]
        pooled = [last]
        for number, side in enumerate((1, 2, 3, 6)):
            small = self.unit(F.adaptive_avg_pool2d(last, side), f"pooling.branches.{number}")
            pooled.append(F.interpolate(small, last.shape[2:], mode="bilinear", align_corners=False))
        sums = [*(self.unit(maps[stage], f"pyramid.laterals.{stage}") for stage in range(3))]
        sums.append(self.unit(torch.cat(pooled, 1), "pooling.fusion"))
        for stage in (2, 1, 0):
            sums[stage] = sums[stage] + self.enlarged(sums[stage + 1], 2, sums[stage])
        levels = [*(self.unit(sums[stage], f"pyramid.outputs.{stage}") for stage in range(3)), sums[3]]
        joined = torch.cat([self.enlarged(level, 2**stage, levels[0]) for stage, level in enumerate(levels)], 1)
        return self.classified(self.unit(joined, "fusion"))

    def fpn(self, maps: list[Tensor]) -> Tensor:
        sums = [*(self.unit(maps[stage], f"pyramid.laterals.{stage}") for stage in range(3)), self.unit(maps[3], "top")]
        for stage in (2, 1, 0):
            sums[stage] = sums[stage] + self.enlarged(sums[stage + 1], 2, sums[stage])
        levels = [*(self.unit(sums[stage], f"pyramid.outputs.{stage}") for stage in range(3)), sums[3]]
        enlarged = [self.enlarged(level, 2**stage, levels[0]) for stage, level in enumerate(levels)]
        return self.classified(torch.stack(enlarged).sum(0))

    def linear(self, maps: list[Tensor]) -> Tensor:
        return self.classified(torch.cat([self.enlarged(x, 2**stage, maps[0]) for stage, x in enumerate(maps)], 1))

    def classified(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.parameters["classifier.weight"], self.parameters["classifier.bias"])


@pytest.mark.parametrize("sides", [(16, 24), (13, 7), (3, 1)])
@pytest.mark.parametrize("kind", ["upernet", "fpn", "linear"])
def test_decoders_compute_what_is_described(kind: str, sides: tuple[int, int]) -> None:
    decoder = segmenter(decoder=kind).decoder.double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    rows, columns, maps = *sides, []
    for dim in (16, 32, 64, 128):
        maps.append(torch.randn(2, dim, rows, columns, dtype=torch.float64, requires_grad=True))
        rows, columns = -(-rows // 2), -(-columns // 2)
    own, described = decoder(maps, None), getattr(Described(decoder), kind)(maps)
    assert own.shape == (2, 5, *sides)
    torch.testing.assert_close(own, described, rtol=0, atol=1e-10)
    weights, inputs = torch.randn_like(own), [*maps, *decoder.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((own * weights).sum(), inputs),
        torch.autograd.grad((described * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["upernet", "fpn", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_at_a_size_that_nothing_divides(kind: str, dtype: torch.dtype) -> None:
    model = segmenter(decoder=kind, model={"checkpointing": 1, "in_channels": 4}).to(dtype).train()
    images = torch.randn(2, 4, 45, 70)
    logits, auxiliary = model(images)
    assert auxiliary is not None
    assert (logits.shape, auxiliary.shape, logits.dtype) == ((2, 5, 12, 18), (2, 5, 3, 5), dtype)
    (logits.float().square().sum() + auxiliary.float().square().sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    for part in ("norms.0.weight", "norms.2.bias", "decoder.classifier.weight", "backbone.patch_embed.proj.weight"):
        assert gradients[part].any(), part
    scores = model.eval().scores(images)
    assert scores.shape == (2, 5, 45, 70)
    assert model(images)[1] is None


def test_backward_has_a_fixed_order() -> None:
    """Only operations whose gradients are sums in a fixed order on CUDA: no interpolation, pooling, or indexing."""
    logits, auxiliary = segmenter()(torch.randn(1, 3, 45, 70))
    assert auxiliary is not None
    seen, waiting = set(), [logits.grad_fn, auxiliary.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert {"ConvolutionBackward0", "NativeGroupNormBackward0", "BmmBackward0"} <= names
    assert not [name for name in names if any(word in name for word in ("Upsample", "Pool", "Index", "Gather"))]


def test_dropout_follows_the_position_alone() -> None:
    model = segmenter(dropout=0.4).train()
    assert model.dropout_channels == 16 + 8
    images, seeds = torch.randn(4, 3, 32, 32), torch.tensor([3, 4, 1 << 45, -7])
    noise, dropout = drop_path_noise(seeds, 4), channel_noise(seeds, 24)
    whole = model(images, noise, dropout)
    for part in (slice(0, 1), slice(1, 4)):
        halves = model(images[part], drop_path_noise(seeds[part], 4), channel_noise(seeds[part], 24))
        for mine, theirs in zip(whole, halves, strict=True):
            assert mine is not None
            torch.testing.assert_close(mine[part], theirs, rtol=1e-5, atol=1e-6)
    other = model(images, noise, channel_noise(seeds + 1, 24))
    assert not torch.allclose(whole[0], other[0])
    nothing = model(images, noise, torch.zeros(4, 24))  # below the rate: every channel is dropped
    assert torch.equal(nothing[0], model.decoder.classifier.bias[:, None, None].expand_as(nothing[0]))
    with pytest.raises(InputError, match=r"dropout of shape \(4, 23\): the model needs \(4, 24\)"):
        model(images, noise, dropout[:, 1:])
    assert segmenter(dropout=0.0).dropout_channels == 0
    assert segmenter(decoder="linear", auxiliary_weight=0.0).dropout_channels == 15 * 16
    assert torch.equal(model.eval()(images)[0], model(images, noise, dropout)[0])


def test_the_numbers_of_channels_are_uniform_and_those_of_nothing_else() -> None:
    seeds = torch.arange(2000)
    numbers = channel_noise(seeds, 24)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert abs(numbers.mean().item() - 0.5) < 0.005
    assert abs((numbers < 0.1).float().mean().item() - 0.1) < 0.005
    assert not set(numbers.flatten().tolist()[:500]) & set(drop_path_noise(seeds, 24).flatten().tolist()[:500])
    assert abs(torch.corrcoef(torch.stack([numbers[:, 0], drop_path_noise(seeds, 1)[:, 0, 0]]))[0, 1]) < 0.1


def test_classifiers_start_near_zero_and_other_convolutions_as_in_torch() -> None:
    model = segmenter(classes=50, channels=64, auxiliary_channels=64)
    for classifier in (model.decoder.classifier, model.auxiliary.classifier):
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not classifier.bias.any()
    weight = model.decoder.fusion.conv.weight
    bound = weight[0].numel() ** -0.5
    assert 0.9 * bound < weight.abs().max() <= bound
    assert all((norm.weight == 1).all() for norm in model.norms)


@pytest.mark.parametrize(("channels", "groups"), [(512, 32), (256, 32), (64, 8), (48, 6), (16, 2), (12, 1), (7, 1)])
def test_groups_divide_the_channels_and_hold_several(channels: int, groups: int) -> None:
    assert group_count(channels) == groups
    norm, x = GroupNorm(channels), torch.randn(2, channels, 3, 3)
    torch.testing.assert_close(norm(x), F.group_norm(x, groups))
    assert norm.bfloat16()(x.bfloat16()).dtype is torch.bfloat16


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"task\.decoder=deeplab: must be one of upernet, fpn, linear"):
        segmenter(decoder="deeplab")
    with pytest.raises(ConfigError, match="num_classes"):
        segmenter(classes=0)
    assert segmenter(auxiliary_weight=0.0).auxiliary is None
