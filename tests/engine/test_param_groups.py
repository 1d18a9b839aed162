"""The grouping rules of the official code, counted on SwinV2-B."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from swinv2_train.config.model import variant
from swinv2_train.config.schema import OptimConfig
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.engine.param_groups import is_decayed, layer_index, parameter_groups
from swinv2_train.models.heads import ImageClassifier, MaskedImageModel
from swinv2_train.models.segmenter import Segmenter

DEPTHS = [2, 2, 18, 2]


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    with torch.device("meta"):
        return ImageClassifier(variant("swinv2_base"), 1000)


@pytest.fixture(scope="module")
def simmim() -> nn.Module:
    with torch.device("meta"):
        return MaskedImageModel(variant("swinv2_base"))


def test_base_decays_101_tensors(classifier: nn.Module) -> None:
    groups = parameter_groups(classifier, OptimConfig(weight_decay=0.05), DEPTHS)
    decayed = [name for group in groups if group["weight_decay"] for name in group["names"]]
    kept = [parameter for group in groups if not group["weight_decay"] for parameter in group["params"]]
    assert len(decayed) == 101
    assert (len(kept), sum(parameter.numel() for parameter in kept)) == (324, 381_152)


def test_the_official_simmim_mismatch_is_an_option(simmim: nn.Module) -> None:
    named = dict(simmim.named_parameters())
    right = {name for name, p in named.items() if is_decayed(name, p, decay_cpb_and_scale=False)}
    official = {name for name, p in named.items() if is_decayed(name, p, decay_cpb_and_scale=True)}
    assert right < official
    assert len(official - right) == 72
    assert all("cpb_mlp" in name or "logit_scale" in name for name in official - right)
    assert "mask_token" not in official


@pytest.mark.parametrize("decay_cpb_and_scale", [True, False])
def test_a_table_of_biases_and_the_norms_of_a_sandwich_are_never_decayed(decay_cpb_and_scale: bool) -> None:
    with torch.device("meta"):
        model = ImageClassifier(
            variant("swinv2_base", norm_placement="sandwich", similarity="dot", position_bias="table"), 1000, (256, 256)
        )
    optim = OptimConfig(weight_decay=0.05, decay_cpb_and_scale=decay_cpb_and_scale)
    groups = parameter_groups(model, optim, DEPTHS)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert len(decayed) == 101
    tables = {name for name, _ in model.named_parameters() if name.endswith("relative_position_bias_table")}
    assert len(tables) == 24
    assert not decayed & tables
    assert not any("norm" in name for name in decayed)


def test_layer_decay_scales_of_base(classifier: nn.Module) -> None:
    groups = parameter_groups(classifier, OptimConfig(layer_decay=0.75), DEPTHS)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["backbone.patch_embed.proj.weight"] == pytest.approx(7.53e-4, rel=1e-3)
    assert scale["backbone.layers.0.blocks.0.attn.qkv.weight"] == pytest.approx(1.003e-3, rel=1e-3)
    assert scale["backbone.layers.2.blocks.7.mlp.fc1.weight"] == pytest.approx(0.02376, rel=1e-3)
    assert scale["backbone.layers.3.blocks.1.mlp.fc1.weight"] == pytest.approx(0.75)
    assert scale["head.weight"] == scale["backbone.norm.weight"] == 1.0


def test_layers_of_other_modules_are_last() -> None:
    merging = layer_index("encoder.layers.1.downsample.reduction.weight", DEPTHS, "encoder")
    assert merging == layer_index("encoder.layers.1.blocks.1.mlp.fc1.weight", DEPTHS, "encoder") == 4
    assert layer_index("mask_token", DEPTHS, "encoder") == layer_index(
        "encoder.patch_embed.norm.bias", DEPTHS, "encoder"
    )
    assert layer_index("net.layers.0.blocks.1.norm1.bias", DEPTHS, "net") == layer_index(
        "layers.0.blocks.1.n", DEPTHS, ""
    )
    others = ("decoder.0.weight", "encoder.absolute_pos_embed", "decoder.layers.0.blocks.0.norm1.bias",
              "decoder.layers.0.downsample.norm.bias", "decoder.patch_embed.proj.weight", "decoder.mask_token",
              "encoder2.layers.0.blocks.0.norm1.bias")  # fmt: skip
    assert {layer_index(name, DEPTHS, "encoder") for name in others} == {25}
    assert layer_index("layers.0.blocks.0.norm1.bias", DEPTHS, None) == 25


def test_factors_multiply_layer_decay_and_the_longest_name_wins(classifier: nn.Module) -> None:
    scales = {"backbone.layers.3.blocks.1": 0.5, "backbone": 0.1, "backbone.norm": 1, "head.bias": 2}
    optim = OptimConfig(layer_decay=0.75, lr_scales=scales)
    groups = parameter_groups(classifier, optim, DEPTHS)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["backbone.layers.3.blocks.1.mlp.fc1.weight"] == pytest.approx(0.75 * 0.5)
    assert scale["backbone.layers.3.blocks.0.mlp.fc1.weight"] == pytest.approx(0.75**2 * 0.1)
    assert (scale["backbone.norm.weight"], scale["head.weight"], scale["head.bias"]) == (1, 1, 2)


def test_every_parameter_is_in_one_group(simmim: nn.Module) -> None:
    groups = parameter_groups(simmim, OptimConfig(layer_decay=0.9), DEPTHS)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in simmim.named_parameters())


def test_the_decoder_and_norms_of_a_segmenter_are_last_and_its_norms_are_not_decayed() -> None:
    with torch.device("meta"):
        model = Segmenter(variant("swinv2_base"), SegmentationConfig(), 150)
    optim = OptimConfig(layer_decay=0.9, weight_decay=0.05, lr_scales={"backbone": 0.1})
    groups = parameter_groups(model, optim, DEPTHS)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert scale["backbone.norm.weight"] == pytest.approx(0.1)
    assert scale["backbone.layers.3.blocks.1.mlp.fc1.weight"] == pytest.approx(0.9 * 0.1)
    assert {scale[name] for name in scale if not name.startswith("backbone.")} == {1.0}
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            assert bool(decay[name]) == (parameter.ndim == 4), name
