"""Weights of images in models of clips: a still clip has the features of the image; clips stay clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.tasks import VideoConfig
from swinv2_train.interop.export_facts import exported_metadata
from swinv2_train.interop.load import load_model
from swinv2_train.interop.source import open_source
from swinv2_train.interop.transfer import Transfer, plan_transfer
from swinv2_train.models import ImageClassifier, MaskedImageModel
from swinv2_train.models.state import state_shapes
from tests.interop.made import CLASSES, SMALL, write_model

CLIP = {"temporal_patch": 2, "temporal_window": 2}
TABLE = {"position_bias": "table", "similarity": "dot", "norm_placement": "pre"}


def filled(model: torch.nn.Module, transfer: Transfer) -> torch.nn.Module:
    """The model with the weights of a transfer, in float64."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (value := transfer.tensor(name)) is not None:
                parameter.copy_(value)
    return model.double().eval()


def transferred(path: Path, model: torch.nn.Module, config: ModelConfig) -> Transfer:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return plan_transfer(open_source(path), shapes, config, resolution=(64, 64))


@pytest.fixture(scope="module", params=["cosine", "table"])
def image_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A file of a model of images, and its fields; the logit scale is at its bound, where the mask leaks most."""
    fields = {
        "depths": [2, 2, 2, 2],
        "window": 3,
        "pretrained_window": 3,
        **(TABLE if request.param == "table" else {}),
    }
    return write_model(tmp_path_factory.mktemp("images") / "model.safetensors", **fields), fields


@pytest.mark.parametrize("frames", [2, 4, 6, 10])
def test_a_still_clip_has_the_features_of_its_image(image_model: tuple[Path, dict[str, Any]], frames: int) -> None:
    """With shifts in time, in space, and in both, with padding in both, and for clips shorter than the window."""
    path, fields = image_model
    config = ModelConfig(**{**SMALL, **fields}, temporal_patch=2, temporal_window=[2, 3, 2, 4])
    clip_model = ImageClassifier(config, 6, (64, 64))
    transfer = transferred(path, clip_model, config)
    filled(clip_model, transfer)
    model = load_model(path).model.double()
    for backbone in (model.backbone, clip_model.backbone):
        for block in (block for stage in backbone.layers for block in stage.blocks):
            if block.attn.logit_scale is not None:
                torch.nn.init.constant_(block.attn.logit_scale, 5.0)
    image = torch.randn(1, 3, 56, 40, dtype=torch.float64)
    clip = image.unsqueeze(2).expand(-1, -1, frames, -1, -1)
    with torch.no_grad():
        for ours, still in zip(clip_model.backbone(clip), model.backbone(image), strict=True):
            torch.testing.assert_close(ours, still.unsqueeze(1).expand_as(ours), rtol=0, atol=1e-12)
        torch.testing.assert_close(clip_model(clip), model(image), rtol=0, atol=1e-12)
    made = {row.key: row for row in transfer.rows if row.action == "inflated"}
    assert made["patch_embed.proj.weight"].detail == "repeated for 2 frames of a patch and divided by their number"
    assert len(made) == 1 + sum(config.depths)
    assert not transfer.of("new")
    assert not transfer.of("dropped")


def test_the_time_of_an_inflated_bias_network_learns(image_model: tuple[Path, dict[str, Any]]) -> None:
    path, fields = image_model
    config = ModelConfig(**{**SMALL, **fields}, **CLIP)
    model = ImageClassifier(config, 6, (64, 64))
    filled(model, transferred(path, model, config))
    model(torch.randn(1, 3, 4, 48, 48, dtype=torch.float64)).square().sum().backward()
    attention = model.backbone.layers[0].blocks[0].attn
    if fields.get("position_bias") == "table":
        table = attention.relative_position_bias_table.view(3, 5, 5, -1)
        assert torch.equal(table[0], table[2])
        assert not torch.equal(*attention.relative_position_bias_table.grad.view(3, 5, 5, -1)[[0, 2]].unbind())
    else:
        assert not attention.cpb_mlp[0].weight[:, 0].any()
        assert attention.cpb_mlp[0].weight.grad[:, 0].any()


def test_simmim_goes_on_with_the_decoder_for_every_frame(tmp_path: Path) -> None:
    path = write_model(tmp_path / "simmim.safetensors", simmim=True)
    config = ModelConfig(**SMALL, **CLIP, pretrained_window=[4, 4, 4, 2])
    model = MaskedImageModel(config)
    transfer = transferred(path, model, config)
    filled(model, transfer)
    assert [row.key for row in transfer.of("inflated")][-2:] == ["decoder.0.weight", "decoder.0.bias"]
    image, mask = torch.randn(1, 3, 64, 48, dtype=torch.float64), torch.rand(1, 16, 12) < 0.5
    still = load_model(path).model.double()(image, mask)
    clip = image.unsqueeze(2).expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(model(clip, mask), still.unsqueeze(2).expand(-1, -1, 4, -1, -1), rtol=0, atol=1e-12)


def test_other_channels_and_frames_together(tmp_path: Path) -> None:
    path = write_model(tmp_path / "gray.safetensors", in_channels=1)
    config = ModelConfig(**SMALL, temporal_patch=4)
    model = ImageClassifier(config, 6)
    transfer = transferred(path, model, config)
    (row,) = [row for row in transfer.rows if row.key == "patch_embed.proj.weight"]
    assert row.detail == "1 input channels to 3, repeated for 4 frames of a patch and divided by their number"
    weight = open_source(path).tensor(row.key)
    torch.testing.assert_close(transfer.tensor("backbone.patch_embed.proj.weight").sum((1, 2)), weight[:, 0])


def test_weights_of_clips_do_not_become_images_nor_clips_of_other_patches(tmp_path: Path) -> None:
    path = write_model(tmp_path / "clips.safetensors", frames=4, **CLIP)
    shapes = r"have patch_embed.proj.weight of shape \(8, 3, 2, 4, 4\), the model \(8, 3, 4, 4, 4\)"
    for patch, hint in (
        (0, "the weights in .* are of clips, which no model of images can start from; use weights of images, or task="),
        (4, f"{shapes}; set model.temporal_patch=2"),
    ):
        config = ModelConfig(**SMALL, temporal_patch=patch)
        with pytest.raises(ConfigError, match=hint):
            transferred(path, ImageClassifier(config, 6), config)
    config = ModelConfig(**SMALL, **CLIP)
    images = write_model(tmp_path / "placed.safetensors", absolute_position=True)
    with pytest.raises(ConfigError, match="absolute position embedding, which models of clips do not have"):
        transferred(images, ImageClassifier(config, 6), config)


@pytest.mark.parametrize(
    ("frames", "count", "names", "label_map", "origin", "reason"),
    [
        (0, 6, None, None, None, "not known to be the same; init.label_map=numbers uses class n for class n"),
        (0, 6, [f"action {number}" for number in range(6)], None, None, "none of the 6 classes has the name"),
        (0, 6, CLASSES, None, list(range(6)), ""),
        (0, 6, ["action", *CLASSES[1:]], None, [None, 1, 2, 3, 4, 5], "5 of 6 rows by class name"),
        (0, 6, None, [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], "by the label map"),
        (0, 3, None, [0, 1, 2], [0, 1, 2], "by the label map"),
        (0, 3, ["action"] * 3, None, None, "none of the 3 classes"),
        (0, 3, None, None, None, "the source has 6 classes, the model 3"),
        (4, 6, None, None, list(range(6)), ""),
        (4, 3, None, None, None, "the source has 6 classes, the model 3"),
    ],
)
def test_the_head_of_images_is_one_of_clips_only_for_the_same_classes(
    tmp_path: Path,
    frames: int,
    count: int,
    names: list[str] | None,
    label_map: list[int] | None,
    origin: list[int | None] | None,
    reason: str,
) -> None:
    """A new head keeps its small initial values."""
    path = write_model(tmp_path / "model.safetensors", frames=frames, **(CLIP if frames else {}))
    config, task = ModelConfig(**SMALL, **CLIP), VideoConfig()
    shapes = state_shapes(ImageClassifier(config, count))
    source = open_source(path)
    found = plan_transfer(source, shapes, config, label_map, resolution=(64, 64), class_names=names, task=task)
    for key in ("head.weight", "head.bias"):
        (row,) = [row for row in found.rows if row.key == key]
        assert reason in row.detail
        value, there = found.tensor(key), source.tensor(key)
        if origin is None:
            assert (row.action, value) == ("new", None)
            continue
        for number, place in enumerate(origin):
            assert torch.equal(value[number], torch.zeros_like(there[0]) if place is None else there[place])


def test_several_crops_need_the_center_mode_also_of_finished_weights(tmp_path: Path) -> None:
    path = write_model(tmp_path / "clips.safetensors", frames=4, **CLIP)
    assert load_model(path, ["task.views=1x3"]).config.task.views == "1x3"
    with pytest.raises(ConfigError, match=r"task.views=1x3: several crops need data.crop_mode=center, not squash"):
        load_model(path, ["task.views=1x3", "data.crop_mode=squash"])


def test_an_export_of_images_records_no_windows_in_time(tmp_path: Path) -> None:
    clips = exported_metadata(load_model(write_model(tmp_path / "clips.safetensors", frames=4, **CLIP)))["model"]
    images = exported_metadata(load_model(write_model(tmp_path / "images.safetensors")))["model"]
    assert clips["temporal_window"] == 2
    assert clips.keys() - images.keys() == {"temporal_window", "pretrained_temporal_window"}


@pytest.mark.parametrize("bias", [{}, TABLE], ids=["network", "table"])
def test_clips_are_used_at_other_windows_with_the_bias_of_their_training(tmp_path: Path, bias: dict[str, Any]) -> None:
    path = write_model(tmp_path / "clips.safetensors", frames=4, **CLIP, **bias)
    loaded = load_model(path)
    assert (loaded.config.data.frames, loaded.config.data.frame_stride) == (4, 3)
    assert loaded.config.model.pretrained_temporal_window == [2] * 4
    opened = load_model(path, ["model.temporal_window=3", "model.pretrained_temporal_window=0"])
    assert opened.config.model.pretrained_temporal_window == [2] * 4
    wider = load_model(path, ["model.temporal_window=3", "model.window=6", "data.frames=12"])
    assert wider.config.model.temporal_window == 3
    assert wider.config.model.pretrained_temporal_window == [2] * 4
    attention, before = (each.model.backbone.layers[0].blocks[0].attn for each in (wider, loaded))
    assert attention.pretrained_window == before.pretrained_window == (2, 4, 4)
    for window in ((2, 4, 4), (3, 6, 6)):
        assert torch.equal(attention.position_table(window), before.position_table(window))
    assert wider.model(torch.zeros(1, 3, 12, 64, 64)).shape == (1, 6)
    with pytest.raises(ConfigError, match=r"data.frames=5: must be a multiple of model.temporal_patch=2, such as 6"):
        load_model(path, ["data.frames=5"])
