"""One check for both directions: a geometry goes to another library, or comes from it, where both compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.interop import export as exporting
from swinv2_train.interop import sidecar
from swinv2_train.interop.agreement import disagreement
from swinv2_train.interop.export import check_request, export
from swinv2_train.interop.load import load_model, start_note
from swinv2_train.interop.source import open_source
from tests.interop.made import write_model

NARROW: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 1, 2, 2]}
GEOMETRIES: list[tuple[Any, Any, bool, bool]] = [  # size, window, whether timm computes the same, and Hugging Face
    (64, 3, False, True),
    (48, 4, True, False),  # a shifted window of 4 on a map of 6: padded by as much as it is rolled
    (40, 4, False, False),  # a map of 5, which does not halve
    (160, 8, False, True),
    ((64, 128), 4, True, False),
    ((96, 128), 2, True, True),
    (64, [[2, 4], 4, 2, 2], True, False),
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["timm", "huggingface"])
@pytest.mark.parametrize(("size", "window", "timm", "huggingface"), GEOMETRIES)
def test_an_export_is_refused_where_its_outputs_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, size: Any, window: Any, timm: bool, huggingface: bool
) -> None:
    """The verdict on narrow models is that on the model itself, other weights and other images."""
    source = write_model(tmp_path / "model.safetensors", size=size, window=window, **NARROW)
    same = timm if layout == "timm" else huggingface
    overrides = ["data.crop_mode=squash"]
    if same:
        assert export(load_model(source, overrides), tmp_path / "out", layout).compared.difference < 1e-5
        return
    with pytest.raises(ConfigError) as caught:
        check_request(load_model(source, overrides), tmp_path / "out", layout, "fp32")
    assert "\n" not in str(caught.value)
    if "one square window" not in str(caught.value):
        monkeypatch.setattr(exporting, "disagreement", lambda *_: None)
        with pytest.raises(CheckpointError, match="differ by"):
            export(load_model(source, overrides), tmp_path / "out", layout)


def randomized(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.3 if parameter.ndim < 2 else 0.15) * torch.randn_like(parameter))
    return model.eval()


def saved_by_timm(place: Path, architecture: str, resize: dict[str, Any] | None = None, **arguments: Any) -> nn.Module:
    import timm

    model = randomized(timm.create_model(architecture, **NARROW, **arguments))
    if resize:
        model.set_input_size(**resize)
    timm.models.save_for_hf(model, place, safe_serialization=True)
    return model


def saved_by_transformers(place: Path, **arguments: Any) -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = randomized(Swinv2ForImageClassification(Swinv2Config(**NARROW, num_labels=3, **arguments)))
    model.save_pretrained(place)
    return model


def farthest(peer: nn.Module, place: Path, overrides: list[str]) -> float:
    """The largest difference of the logits, as a share of the largest."""
    loaded = load_model(place, overrides)
    size = loaded.config.data.resolution
    images = torch.randn(2, loaded.config.model.in_channels, *([size] * 2 if isinstance(size, int) else size))
    with torch.no_grad():
        theirs, ours = peer(images), loaded.model(images)
    theirs = getattr(theirs, "logits", theirs)
    return float((theirs - ours).abs().max() / ours.abs().max())


STATISTICS = ["data.mean=[0,0,0,0,0]", "data.std=[1,1,1,1,1]"]
TIMM: list[tuple[str, dict[str, Any], Any, Any, Any]] = [  # architecture, arguments, size, window, of the pretraining
    ("swinv2_tiny_window8_256", {"img_size": (64, 128), "in_chans": 5}, [64, 128], 8, [8, 8, [4, 8], [2, 4]]),
    ("swinv2_tiny_window8_256", {"img_size": (64, 96), "window_size": (2, 4)}, [64, 96], [[2, 4]] * 4, None),
    ("swinv2_tiny_window8_256", {"resize": {"img_size": 128}}, 128, 4, [4, 4, 4, 4]),
    ("swinv2_base_window12to16_192to256", {"img_size": 128}, 128, 16, [12, 12, 12, 6]),
    ("swinv2_tiny_window8_256", {"img_size": 64, "dynamic_img_size": True}, 64, 8, [8, 8, 4, 2]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "arguments", "size", "window", "pretrained"), TIMM)
def test_what_timm_saved_is_read_as_it_was_built(
    tmp_path: Path, architecture: str, arguments: dict[str, Any], size: Any, window: Any, pretrained: Any
) -> None:
    model = saved_by_timm(tmp_path, architecture, num_classes=3, **arguments)
    assert farthest(model, tmp_path, []) < 1e-5
    config = load_model(tmp_path).config
    assert (config.data.resolution, config.model.window) == (size, window)
    assert pretrained in (None, config.model.pretrained_window)
    assert len(config.data.mean) == config.model.in_channels


def test_a_feature_extractor_of_timm_is_read_as_it_was_built(tmp_path: Path) -> None:
    saved_by_timm(tmp_path, "swinv2_tiny_window8_256", num_classes=0, img_size=96, in_chans=1)
    with open_source(tmp_path) as source:
        assert (source.num_classes, source.metadata["data"]["resolution"]) == (0, [96, 96])
        assert source.metadata["model"]["in_channels"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"image_size": 128, "window_size": 8, "pretrained_window_sizes": [6, 6, 6, 3]},
        {"image_size": [96, 128], "window_size": 2},
        {"image_size": [64, 128], "window_size": 4},  # by the official rule for maps with a side within the window
        {"image_size": 64, "window_size": 4, "num_channels": 5},
    ],
)
def test_what_transformers_saved_is_read_as_it_was_built(tmp_path: Path, arguments: dict[str, Any]) -> None:
    model = saved_by_transformers(tmp_path, **arguments)
    assert farthest(model, tmp_path, STATISTICS if "num_channels" in arguments else []) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "huggingface"])
def test_a_geometry_that_the_source_computes_differently_is_refused_until_it_is_asked_for(
    tmp_path: Path, library: str
) -> None:
    if library == "timm":
        model = saved_by_timm(tmp_path, "swinv2_tiny_window8_256", num_classes=3, img_size=160)
        given = "data.resolution=160"
    else:
        model = saved_by_transformers(tmp_path, image_size=[128, 64], window_size=4)
        given = "data.resolution=[128,64]"
    with pytest.raises(ConfigError) as caught:
        load_model(tmp_path)
    assert f"would not produce the results of {library}" in str(caught.value)
    assert given in str(caught.value)
    assert farthest(model, tmp_path, [given]) > 1e-3
    assert any("this geometry" in note for note in load_model(tmp_path, [given]).source.notes)
    with open_source(tmp_path) as source:
        config = load_model(tmp_path, [given]).config
        size = tuple(source.metadata["data"]["resolution"])
        assert len(start_note(source, config.model, size)) == 1
        assert not start_note(source, config.model, (256, 256))


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"layer_norm_eps": 0.01}, {"always_partition": True}])
def test_an_option_that_this_program_does_not_have_is_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    if "always_partition" in option:
        saved_by_timm(tmp_path, "swinv2_tiny_window8_256", num_classes=3, img_size=64, **option)
    else:
        saved_by_transformers(tmp_path, image_size=64, window_size=4, **option)
    for overrides in ([], ["data.resolution=96", "model.window=6"]):
        with pytest.raises(ConfigError, match=r"by an option in config\.json that this package does not have"):
            load_model(tmp_path, overrides)


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_by_transformers(tmp_path, image_size=64, window_size=4)
    monkeypatch.setattr("swinv2_train.interop.agreement.is_installed", lambda _: False)
    assert "transformers is not installed" in load_model(tmp_path).source.notes[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"window_size": "eight"},
        {"window_size": [4, 4, 4]},
        {"window_size": 2**70},
        {"image_size": -64},
        {"image_size": {"height": 64}},
        {"pretrained_window_sizes": [4, 4]},
        {"pretrained_window_sizes": 4},
    ],
)
def test_a_config_that_is_none_is_one_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {"image_size": 64, "window_size": 4, "pretrained_window_sizes": [0, 0, 0, 0], **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json has an invalid window or size"):
        sidecar.windows(sidecar.read(tmp_path), None)


def test_arguments_that_name_files_are_not_passed_on(tmp_path: Path) -> None:
    """`timm.create_model` would load the weights that checkpoint_path names."""
    from swinv2_train.config.model import ModelConfig

    config = {
        "architecture": "swinv2_tiny_window8_256",
        "model_args": {"checkpoint_path": str(tmp_path / "planted.pth")},
    }
    assert disagreement("timm", ModelConfig(), (64, 64), config) is None
