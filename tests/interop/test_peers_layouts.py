"""torchvision and mmpretrain: their names, their arrangement of tensors, and what they compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import VARIANTS, ModelConfig
from swinv2_train.interop.agreement import disagreement
from swinv2_train.interop.load import load_model, start_note
from swinv2_train.interop.names import FORMATS
from swinv2_train.interop.source import open_source
from tests.interop.files import canonical, classifier, mmpretrain_key
from tests.models.golden import golden_config

SHAPE: dict[str, Any] = {"embed_dim": 16, "depths": [2, 1, 2, 1], "num_heads": [1, 1, 2, 2]}


def randomized(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.3 if parameter.ndim < 2 else 0.15) * torch.randn_like(parameter))
    return model.eval()


def torchvision_model(window: int, **changes: Any) -> nn.Module:
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    model = swin.SwinTransformer(
        patch_size=[4, 4],
        window_size=[window, window],
        num_classes=5,
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
        **{**SHAPE, **changes},
    )
    return randomized(model)


def test_torchvision_is_read_as_it_computes(tmp_path: Path) -> None:
    model = torchvision_model(2)
    torch.save({"model": model.state_dict()}, tmp_path / "swin.pth")
    loaded = load_model(tmp_path / "swin.pth", ["data.resolution=64"])
    assert (loaded.source.format, loaded.config.model.window) == ("torchvision", 2)
    assert loaded.config.model.window_rule == "per-axis"
    assert not any("differently" in note for note in loaded.source.notes)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = model(images), loaded.model(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    key = "layers.2.blocks.1.attn.v_bias"
    whole = model.state_dict()["features.5.1.attn.qkv.bias"]
    with open_source(tmp_path / "swin.pth") as source:
        assert torch.equal(source.tensor(key), whole[128:])
        assert torch.equal(source.elements(key, 10, 20), whole[138:148])
        assert source.renamed[key] == "features.5.1.attn.qkv.bias"


def test_a_geometry_that_torchvision_pads_is_reported(tmp_path: Path) -> None:
    """It pads a map to the window; this package clamps the window to the map."""
    torch.save(torchvision_model(4).state_dict(), tmp_path / "swin_v2_t-b137f0e2.pth")
    with open_source(tmp_path / "swin_v2_t-b137f0e2.pth") as source:
        source.metadata["model"]["window"] = 8
        model = ModelConfig(window=8, **SHAPE)
        source.metadata["data"]["resolution"] = [96, 96]
        assert "computes this geometry differently" in start_note(source, model, (96, 96))[0]
        source.metadata["data"]["resolution"] = [256, 256]
        assert start_note(source, model, (256, 256)) == []
    mixed = ModelConfig(window=[8, 8, 4, 4], **SHAPE)
    assert "it has one window for all stages" in str(disagreement("torchvision", mixed, (64, 64)))


@pytest.mark.parametrize(("size", "classes", "crop"), [("t", 1000, 260), ("s", 1000, 260), ("b", 1000, 272)])
def test_a_release_of_torchvision_tells_its_model(tmp_path: Path, size: str, classes: int, crop: int) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in getattr(models, f"swin_v2_{size}")().state_dict().items()}
    path = tmp_path / f"swin_v2_{size}-0123abcd.pth"
    tables = {key: torch.full(shape, math.log2(9) / 3) for key, shape in shapes.items() if key.endswith("coords_table")}
    torch.save({key: torch.zeros(1).expand(shape) for key, shape in shapes.items()} | tables, path)
    name = {"t": "swinv2_tiny", "s": "swinv2_small", "b": "swinv2_base"}[size]
    with open_source(path) as source:
        model = source.metadata["model"]
        assert {key: model[key] for key in VARIANTS[name]} == VARIANTS[name]
        assert (model["window"], source.num_classes, model["extra_norm_stage"]) == (8, classes, False)
        assert source.metadata["data"]["resolution"] == [256, 256]
        assert int(256 / source.metadata["preprocess"]["crop_pct"]) == crop


def test_torchvisions_first_swin_is_refused(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in models.swin_t().state_dict().items()}
    torch.save({key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}, tmp_path / "swin_t.pth")
    with pytest.raises(ConfigError, match="torchvision's Swin Transformer V1, whose weights do not fit V2"):
        open_source(tmp_path / "swin_t.pth")


def unfolded(name: str, tensor: Tensor) -> Tensor:
    """The reduction of patch merging for the inputs of `nn.Unfold`, found by unfolding numbered patches."""
    if "reduction" not in name:
        return tensor
    channels = tensor.shape[1] // 4
    numbers = torch.arange(tensor.shape[1]).view(4, channels)  # by patch, as the official code joins them
    image = torch.empty(channels, 2, 2)
    for number, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        image[:, row, column] = numbers[number].float()
    order = nn.Unfold(2)(image[None])[0, :, 0].long()
    return tensor[:, order]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_mmpretrain_is_read_as_it_was(tmp_path: Path, prefix: str) -> None:
    weights = canonical(classifier(extra_norm_period=2))
    state = {prefix + mmpretrain_key(name): unfolded(name, tensor) for name, tensor in weights.items()}
    path = tmp_path / "swinv2-tiny-w8_3rdparty_in1k-256px_20220803-e318968f.pth"
    torch.save({"meta": {"epoch": 300}, "state_dict": state}, path)
    with open_source(path) as source:
        assert source.format == "mmpretrain"
        assert (source.metadata["model"]["window"], source.metadata["model"]["extra_norm_period"]) == (8, 2)
        assert source.metadata["data"]["resolution"] == [256, 256]
        assert source.shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()}
        assert all(torch.equal(source.tensor(name), tensor) for name, tensor in weights.items())
        key = "layers.1.downsample.reduction.weight"
        assert torch.equal(source.elements(key, 50, 300), weights[key].flatten()[50:300])
    for name, windows, before in (
        ("swinv2-base-w16_in21k-pre_3rdparty_in1k-256px", 16, [12, 12, 12, 6]),
        ("swinv2-large-w24_in21k-pre_3rdparty_in1k-384px", 24, [12, 12, 12, 6]),
        ("swinv2-small-w16_3rdparty_in1k-256px", 16, None),
    ):
        with open_source(path.rename(path := tmp_path / f"{name}.pth")) as source:
            found = source.metadata["model"]
            assert (found["window"], found.get("pretrained_window")) == (windows, before)
    with pytest.raises(ConfigError, match="the layout of mmpretrain is only read"):
        FORMATS["mmpretrain"].write(weights, golden_config())


def test_a_damaged_arrangement_is_one_sentence(tmp_path: Path) -> None:
    state = torchvision_model(2).state_dict()
    for key, shape in (("features.1.0.attn.qkv.bias", (47,)), ("features.1.0.attn.qkv.bias", ())):
        torch.save({**state, key: torch.zeros(shape)}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"is broken: features.1.0.attn.qkv.bias has the shape .* instead of"):
            open_source(tmp_path / "x.pth")
