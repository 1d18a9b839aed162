"""The rule by which windows are clamped travels with the weights, into every use of them and out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.interop.export import check_request, export
from swinv2_train.interop.load import load_model, source_config
from swinv2_train.interop.names import FORMATS
from swinv2_train.interop.source import open_source
from swinv2_train.interop.transfer import plan_transfer
from tests.interop.files import canonical, classifier
from tests.models.golden import CASES, golden_config, golden_images

SIZE, FIELDS, LOGITS = CASES["G"]
"""64x128 pixels, window 4: the maps of stages 3 and 4 have a side that is not larger than the window."""


def foreign(directory: Path, layout: str) -> Path:
    """The weights of case G as a library leaves them."""
    directory.mkdir()
    weights = canonical(classifier(**FIELDS))
    if layout == "official":
        torch.save({"model": weights}, directory / "official_window4_64.pth")
        return directory / "official_window4_64.pth"
    save_file(FORMATS[layout].write(weights, golden_config(**FIELDS)), directory / "model.safetensors")
    sides: dict[str, Any] = {"window_size": 4, "image_size": list(SIZE), "img_size": list(SIZE)}
    config = sides if layout == "huggingface" else {"architecture": "swinv2_tiny_window8_256", "model_args": sides}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "rule"), [("official", "official"), ("huggingface", "official"), ("timm", "per-axis")]
)
def test_imported_weights_have_the_rule_of_their_library(tmp_path: Path, layout: str, rule: str) -> None:
    path = foreign(tmp_path / "weights", layout)
    with open_source(path) as source:
        assert source.metadata["model"]["window_rule"] == rule
    # A size of one's own is asked for on purpose: what timm computes on these maps is compared elsewhere.
    loaded = load_model(path, ["model.window=4", f"data.resolution={list(SIZE)}", "model.pretrained_window=0"])
    assert loaded.config.model.window_rule == rule
    with torch.no_grad():
        difference = (loaded.model(golden_images(SIZE).float()) - torch.tensor([LOGITS])).abs().max()
    assert (difference < 1e-5) == (rule == "official")


@pytest.mark.slow
def test_our_own_format_keeps_the_rule(tmp_path: Path) -> None:
    path = foreign(tmp_path / "weights", "official")
    overrides = ["model.window=4", f"data.resolution={list(SIZE)}", "model.pretrained_window=0"]
    export(load_model(path, overrides), tmp_path / "out", "swinv2-train")
    with torch.no_grad():
        logits = load_model(tmp_path / "out").model(golden_images(SIZE).float())
    torch.testing.assert_close(logits, torch.tensor([LOGITS]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_timm_has_no_place_for_the_official_rule(tmp_path: Path) -> None:
    path = foreign(tmp_path / "weights", "official")
    overrides = ["model.window=4", "model.pretrained_window=0"]
    oblong = load_model(path, [*overrides, f"data.resolution={list(SIZE)}"])
    with pytest.raises((ConfigError, CheckpointError), match="differ"):
        export(oblong, tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()
    square = load_model(path, [*overrides, "data.resolution=64"])
    check_request(square, tmp_path / "out", "timm", "fp32")


@pytest.mark.parametrize(("ours", "size", "warned"), [
    ("per-axis", SIZE, True), ("official", SIZE, False), ("per-axis", (64, 64), False), ("per-axis", (128, 192), False),
])  # fmt: skip
def test_a_run_that_starts_from_weights_of_another_rule_is_warned(
    tmp_path: Path, ours: str, size: tuple[int, int], warned: bool
) -> None:
    model = golden_config(**{**FIELDS, "window": 2 if size == (128, 192) else 4, "window_rule": ours})
    with open_source(foreign(tmp_path / "weights", "official")) as source:
        assert "model.window_rule=per-axis computes it as this package does" in source.notes[0]
        shapes = {name: tuple(value.shape) for name, value in classifier(**FIELDS).named_parameters()}
        lines = plan_transfer(source, shapes, model, resolution=size).lines()
    expected = (
        "windows of 4x4 shifted by 0x0 on the 4x8 map of stage 3; model.window_rule=per-axis has 4x4 shifted by 0x2"
    )
    assert any(expected in line and "set model.window_rule=official to keep theirs" in line for line in lines) == warned


@pytest.mark.slow
def test_weights_from_before_the_rule_are_per_axis(tmp_path: Path) -> None:
    path = foreign(tmp_path / "weights", "official")
    done = export(load_model(path, ["data.resolution=64", "model.window=4"]), tmp_path / "out", "swinv2-train")
    with open_source(done.path) as source:
        del source.metadata["model"]["window_rule"]
        assert source_config(source).model.window_rule == "per-axis"
