"""Detectors leave the package: complete in its own format, as a backbone, and as a program of the feature pyramid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import swinv2_train
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks import DetectionConfig
from swinv2_train.interop import onnx
from swinv2_train.interop.export import export, exported_part
from swinv2_train.interop.load import load_model
from tests.evaluated import save_weights
from tests.models.detection.made import section

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task: DetectionConfig = section("htc", num_classes=3)
    return save_weights(tmp_path_factory.mktemp("detector") / "htc.safetensors", task, NAMES, depths=[1, 1, 1, 1])


def test_a_program_has_the_levels_of_the_pyramid(source: Path) -> None:
    """At a size that 64 does not divide. Only traced: writing either format takes far longer."""
    overrides = ["data.resolution=[44,64]"]
    expected, loaded = load_model(source, overrides).model, load_model(source, overrides)
    inference = exported_part(loaded, "onnx")
    assert inference.names == ("p2", "p3", "p4", "p5", "p6")
    program = onnx.trace(inference, loaded.config.model, torch.randn(2, 3, 44, 64))
    for count in (1, 3):
        images = torch.randn(count, 3, 44, 64)
        with torch.no_grad():
            computed, levels = program.module()(images), expected.levels(images)
        assert [level.shape for level in computed] == [level.shape for level in levels]
        for one, other in zip(computed, levels, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))
    assert not [name for name in program.state_dict if "heads" in name or "rpn" in name or "semantic" in name]


@pytest.mark.slow
def test_a_detector_is_written_complete(source: Path, tmp_path: Path) -> None:
    done = export(load_model(source), tmp_path / "out", "swinv2-train")
    assert done.notes == []
    images, sizes = torch.randn(2, 3, 32, 32), torch.tensor([[32, 32], [32, 32]])
    with torch.no_grad():
        found, again = (load_model(path).model(images, sizes) for path in (source, tmp_path / "out"))
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.masks, other.masks)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card
    assert "images the levels of the feature pyramid " in card
    assert "found = model(images" in card


@pytest.mark.slow
def test_an_onnx_file_has_an_output_per_level(source: Path, tmp_path: Path) -> None:
    import onnxruntime

    done = export(load_model(source), tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == ["p2", "p3", "p4", "p5", "p6"]
    assert any("backbone and feature pyramid" in note for note in done.notes)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\np2, p3, p4, p5, p6 = session.run" in card
    assert "image-feature-extraction" in card


@pytest.mark.slow
def test_for_other_libraries_it_is_a_backbone(source: Path, tmp_path: Path) -> None:
    done = export(load_model(source), tmp_path / "out", "timm")
    assert any("exported as a feature extractor, without the detector" in note for note in done.notes)


def test_the_api_names_what_a_detector_has(source: Path) -> None:
    model = swinv2_train.load(source, device="cpu")
    images = torch.randn(1, 3, 32, 32)
    assert model.features(images).shape == (1, 128)
    with pytest.raises(ConfigError, match=r"has no probability per class; use features\(\) or maps\(\)"):
        model.probabilities(images)
