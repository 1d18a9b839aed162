"""Every tensor is accounted for; what changes keeps its meaning; a contradiction is one sentence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig, variant
from swinv2_train.interop.inflation import change_channels
from swinv2_train.interop.source import WeightSource, open_source
from swinv2_train.interop.structure import check_structure
from swinv2_train.interop.transfer import Transfer, plan_transfer
from swinv2_train.models import ImageClassifier, MaskedImageModel
from swinv2_train.models.layers import position_embedding
from tests.interop.files import SMALL, official_buffers, official_file, official_simmim_file, released_simmim_file
from tests.interop.made import SMALL as MADE
from tests.interop.made import write_model

DEPTHS = [2, 2, 2, 2]


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def saved(path: Path, content: dict[str, Any]) -> WeightSource:
    torch.save(content, path / "file.pth")
    return open_source(path / "file.pth")


def into_classifier(source: WeightSource, classes: int = 10, resolution: int = 64, **fields: Any) -> Transfer:
    config = ModelConfig(**{"depths": DEPTHS, **SMALL, **fields})
    size = (resolution, resolution)
    with torch.device("meta"):
        model = ImageClassifier(config, classes, size)
    label_map = fields.pop("label_map", None)
    return plan_transfer(source, shapes(model), config, label_map, resolution=size)


def actions(transfer: Transfer) -> dict[str, str]:
    return {row.key: row.action for row in transfer.rows}


def test_a_classifier_from_simmim(tmp_path: Path) -> None:
    content = official_simmim_file(window=4)
    transfer = into_classifier(saved(tmp_path, content))
    done = actions(transfer)
    assert {key for key, action in done.items() if action == "dropped"} == {
        "mask_token", "decoder.0.weight", "decoder.0.bias",
    }  # fmt: skip
    assert {key for key, action in done.items() if action == "new"} == {"head.weight", "head.bias"}
    assert transfer.tensor("head.weight") is None, "the model keeps its initial value"
    assert set(done.values()) == {"renamed", "new", "dropped"}, "every name of the file has encoder. before it"
    name = "layers.1.blocks.1.attn.cpb_mlp.2.weight"
    value = content["model"][f"encoder.{name}".replace("cpb_mlp", "rpe_mlp")]
    assert torch.equal(transfer.tensor(f"backbone.{name}"), value)
    assert torch.equal(transfer.elements(f"backbone.{name}", 5, 9), value.flatten()[5:9])
    assert "2 new (head), 3 dropped (mask_token, decoder)" in transfer.lines()[0]
    assert len(transfer.table().splitlines()) == len(transfer.lines()) + 1 + len(transfer.rows)


def test_simmim_from_a_classifier(tmp_path: Path) -> None:
    config = ModelConfig(depths=DEPTHS, **SMALL)
    source = saved(tmp_path, official_file(64, window=4))
    with torch.device("meta"):
        transfer = plan_transfer(source, shapes(MaskedImageModel(config)), config)
    done = actions(transfer)
    assert {key for key, action in done.items() if action == "new"} == {
        "mask_token", "decoder.0.weight", "decoder.0.bias",
    }  # fmt: skip
    assert [done[key] for key in ("head.weight", "head.bias")] == ["dropped"] * 2
    assert done["layers.0.blocks.1.attn.relative_coords_table"] == "dropped"
    assert transfer.tensor("encoder.norm.weight") is not None


def test_another_number_of_classes_gets_zeros_or_rows(tmp_path: Path) -> None:
    content = official_file(64, classes=7, window=4)
    source = saved(tmp_path, content)
    config = ModelConfig(depths=DEPTHS, **SMALL)
    with torch.device("meta"):
        wanted = shapes(ImageClassifier(config, 3))
    zeros = plan_transfer(source, wanted, config)
    assert actions(zeros)["head.weight"] == "new"
    assert torch.equal(zeros.tensor("head.weight"), torch.zeros(3, 64))
    rows = plan_transfer(source, wanted, config, [6, 0, 4])
    assert actions(rows)["head.bias"] == "rows taken"
    assert torch.equal(rows.tensor("head.weight"), content["model"]["head.weight"][[6, 0, 4]])
    with pytest.raises(ConfigError, match=r"names class 7, but .* has classes 0 to 6"):
        plan_transfer(source, wanted, config, [6, 7, 4])
    with pytest.raises(ConfigError, match="it has 2 lines, and the model 3 classes"):
        plan_transfer(source, wanted, config, [6, 4])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8])
def test_a_gray_image_responds_the_same_in_any_number_of_channels(channels: int) -> None:
    weight = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    grey = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    expected = F.conv2d(grey.expand(1, 3, 8, 8), weight, stride=4)
    changed = change_channels(weight, channels)
    assert changed.shape == (5, channels, 4, 4)
    torch.testing.assert_close(F.conv2d(grey.expand(1, channels, 8, 8), changed, stride=4), expected)
    if channels == 6:
        torch.testing.assert_close(changed, torch.cat([weight, weight], dim=1) * 3 / 6)


@pytest.mark.parametrize(("channels", "action"), [(1, "averaged"), (4, "inflated")])
def test_other_channels_are_reported(tmp_path: Path, channels: int, action: str) -> None:
    transfer = into_classifier(saved(tmp_path, official_file(64, window=4)), in_channels=channels)
    assert actions(transfer)["patch_embed.proj.weight"] == action
    assert transfer.tensor("backbone.patch_embed.proj.weight").shape == (8, channels, 4, 4)
    assert "3 input channels" in "\n".join(transfer.lines())


def test_an_absolute_position_embedding_follows_the_resolution(tmp_path: Path) -> None:
    config = ModelConfig(depths=DEPTHS, window=4, absolute_position=True, **SMALL)
    model = ImageClassifier(config, 10, (64, 64))
    with torch.no_grad():  # a plane stays the same plane, away from the border
        rows = torch.arange(16.0).repeat_interleave(16)
        model.backbone.absolute_pos_embed.copy_(rows[None, :, None].expand(1, 256, 8))
    state = {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}
    source = saved(tmp_path, {"model": {**official_buffers(config, 64), **state}})
    transfer = into_classifier(source, absolute_position=True, resolution=128)
    assert actions(transfer)["absolute_pos_embed"] == "resized"
    resized = transfer.tensor("backbone.absolute_pos_embed")
    assert resized.shape == (1, 1024, 8)
    inner = resized.reshape(32, 32, 8)[6:-6, 6:-6]
    plane = (torch.arange(32.0)[6:-6] + 0.5) / 2 - 0.5
    torch.testing.assert_close(inner, plane[:, None, None].expand(inner.shape), atol=0.06, rtol=0)


def test_a_position_embedding_of_the_same_length_but_another_shape_is_resized(tmp_path: Path) -> None:
    path = write_model(tmp_path / "wide.safetensors", size=(64, 256), absolute_position=True)
    config = ModelConfig(**{**MADE, "absolute_position": True})

    def into(size: tuple[int, int]) -> tuple[str, torch.Tensor]:
        with torch.device("meta"):
            model = ImageClassifier(config, 6, size)
        with open_source(path) as source:
            transfer = plan_transfer(source, shapes(model), config, resolution=size)
            return actions(transfer)["absolute_pos_embed"], transfer.tensor("backbone.absolute_pos_embed")

    action, kept = into((64, 256))
    assert action == "loaded"
    action, square = into((128, 128))
    assert action == "resized"
    expected = position_embedding(kept, (16, 64), 32, 32).flatten(1, 2)
    assert torch.equal(square, expected)
    assert not torch.equal(square, kept)
    assert into((256, 64))[0] == "resized"


def test_every_tensor_of_a_released_file_has_its_place(tmp_path: Path) -> None:
    """The released SwinV2-B SimMIM weights, into the official fine-tuning at 224 pixels."""
    config = variant("swinv2_base", window=7, pretrained_window=[12, 12, 12, 6])
    with torch.device("meta"):
        model = ImageClassifier(config, 1000, (224, 224))
    content = released_simmim_file()
    transfer = plan_transfer(saved(tmp_path, content), shapes(model), config, resolution=(224, 224))
    counted = Counter(row.action for row in transfer.rows)
    assert counted == {"renamed": len(content["model"]) - 3, "new": 2, "dropped": 3}
    key = "layers.2.blocks.17.attn.cpb_mlp.2.weight"
    assert torch.equal(transfer.tensor(f"backbone.{key}"), content["model"][f"encoder.{key}".replace("cpb", "rpe")])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"embed_dim": 16}, r"model.embed_dim=16: .*\(8, 3, 4, 4\), the model \(16, 3, 4, 4\); set model.embed_dim=8"),
        ({"depths": [2, 2, 6, 2]}, "2 blocks in layers.2.blocks, the model 6"),
        (
            {"num_heads": [1, 2, 4, 4]},
            r"layers.3.blocks.0.attn.logit_scale of shape \(8, 1, 1\), the model \(4, 1, 1\)",
        ),
        ({"mlp_ratio": 2.0}, r"mlp.fc1.weight of shape \(32, 8\), the model \(16, 8\)"),
        ({"extra_norm_period": 2}, "model.extra_norm_period=0; set model.extra_norm_period=0"),
        ({"norm_placement": "pre"}, "model.norm_placement=pre: .* set model.norm_placement=res-post"),
        ({"position_bias": "linear-cpb"}, "model.position_bias=linear-cpb: .* set model.position_bias=log-cpb"),
        ({"similarity": "dot"}, "set model.similarity=cosine"),
        ({"absolute_position": True}, "model.absolute_position=true: .* set model.absolute_position=false"),
    ],
)
def test_a_contradiction_is_one_sentence(tmp_path: Path, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        into_classifier(saved(tmp_path, official_file(64, window=4)), **fields)
    assert "\n" not in str(caught.value)


def test_a_large_file_does_not_go_into_base(tmp_path: Path) -> None:
    large = variant("swinv2_large")
    with torch.device("meta"):
        weights = ImageClassifier(large, 10).state_dict()
    state = {key.removeprefix("backbone."): torch.zeros(1).expand(value.shape) for key, value in weights.items()}
    source = saved(tmp_path, {"model": state})
    with pytest.raises(ConfigError) as caught:
        check_structure(source, variant("swinv2_base"))
    assert str(caught.value) == (
        f"model.embed_dim=128: the weights in {tmp_path / 'file.pth'} have patch_embed.proj.weight of shape "
        "(192, 3, 4, 4), the model (128, 3, 4, 4); take model=swinv2_large, or use others"
    )


@pytest.mark.parametrize(
    ("remove", "add", "sentence"),
    [
        ("layers.1.blocks.0.norm1.bias", None, "lacks layers.1.blocks.0.norm1.bias, which is .16,. in the model"),
        (None, "layers.1.blocks.0.adapter.weight", "holds layers.1.blocks.0.adapter.weight of shape"),
    ],
)
def test_a_tensor_too_few_or_too_many_is_named(tmp_path: Path, remove: str, add: str, sentence: str) -> None:
    content = official_file(64, window=4)
    content["model"] = {key: value for key, value in content["model"].items() if key != remove}
    if add:
        content["model"][add] = torch.zeros(2)
    with pytest.raises(ConfigError, match=sentence):
        into_classifier(saved(tmp_path, content))
