"""The proof of an export begins at the encoded image: equal pixels, or a sentence that says how far apart they are."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from swinv2_train.data.decode import decode
from swinv2_train.data.image_input import prepare
from swinv2_train.interop import export as exporting
from swinv2_train.interop import peers, sidecar
from swinv2_train.interop.export import Exported, export
from swinv2_train.interop.input_check import made_pictures
from swinv2_train.interop.input_code import input_code, run_code
from swinv2_train.interop.load import LoadedModel, load_model
from swinv2_train.interop.source import open_source
from tests.interop.made import write_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("input") / "model.safetensors")


@pytest.fixture(scope="module")
def loaded(source: Path) -> LoadedModel:
    return load_model(source)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("mode", "share"), [("center", 0.875), ("center", 0.8), ("center", 1.0), ("squash", 0.875)])
@pytest.mark.parametrize("size", [64, [64, 96]])
def test_the_lines_in_the_readme_make_the_input_of_the_model(
    loaded: LoadedModel, interpolation: str, mode: str, share: float, size: Any
) -> None:
    data = loaded.config.data
    data.augment.interpolation, data.crop_mode, data.crop_pct, data.resolution = interpolation, mode, share, size
    shown = run_code(input_code(loaded))
    pictures = made_pictures(loaded, [8, 16])
    assert len(pictures) == 8
    for picture in pictures:
        pixels = decode(picture, 3)
        ours = prepare(pixels, loaded.config, loaded.mean, loaded.std)
        assert torch.allclose(shown(pixels), ours, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("exports")
    made: dict[tuple[Any, ...], Exported] = {}

    def get(layout: str, bits: int, *overrides: str) -> Exported:
        key = (layout, bits, *overrides)
        if key not in made:
            made[key] = export(load_model(source, overrides), place / str(len(made)), layout, bits=bits)
        return made[key]

    return get


SQUASH, BILINEAR = "data.crop_mode=squash", "data.augment.interpolation=bilinear"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "bits", "overrides", "agrees", "says"),
    [
        ("huggingface", 8, [SQUASH], True, "up to 0 of 255 levels"),
        ("huggingface", 16, [SQUASH, BILINEAR], True, "4 encoded images of 16 bits: AutoImageProcessor creates pixels"),
        ("huggingface", 8, [], False, "rounds the margin of its center crop down"),
        ("huggingface", 16, [BILINEAR], False, "rounds the margin of its center crop down"),
        ("timm", 8, [], True, "timm's transform creates pixels up to"),
        ("timm", 16, [], False, "it supports PIL images of 8 bits"),
        ("timm", 8, ["data.resolution=[64,96]", "model.window=2"], False, "resizes or crops differently"),
    ],
)
def test_what_the_other_side_makes_of_a_file_is_compared(
    exported: Any, layout: str, bits: int, overrides: list[str], agrees: bool, says: str
) -> None:
    done = exported(layout, bits, *overrides)
    check = done.compared.input
    assert check.agrees is agrees, check
    assert says in check.sentence("logits")
    card = (done.path / "README.md").read_text()
    assert ("| input checked on |" in card) is agrees
    assert ("| input differs |" in card) is not agrees
    assert f"{2**bits - 1} ({bits} bits)" in card


def code_of(directory: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), flags=re.S)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("crop", ["center", "squash"])
def test_a_file_has_the_same_logits_by_the_code_of_the_readme(
    source: Path, exported: Any, monkeypatch: pytest.MonkeyPatch, bits: int, crop: str
) -> None:
    """As somebody without this program would do it: the README's code, its processor where it shows one."""
    overrides = [BILINEAR] if crop == "center" else [SQUASH, BILINEAR]
    if (bits, crop) == (8, "squash"):
        overrides = [SQUASH]
    done = exported("huggingface", bits, *overrides)
    rng = np.random.default_rng(3)
    cells = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((131, 87), Image.Resampling.BICUBIC)
    pixels, file = np.asarray(cells), io.BytesIO()
    if bits == 16:
        pixels = pixels.astype(np.uint16) * 257
        tifffile.imwrite(file, pixels, photometric="rgb")
    else:
        cells.save(file, "PNG")
    ours = load_model(source, overrides)
    batch = prepare(decode(file.getvalue(), 3), ours.config, ours.mean, ours.std)[None]
    with torch.no_grad():
        expected = ours.model(batch)
    monkeypatch.chdir(done.path.parent)
    scope: dict[str, Any] = {}
    use, preparation = code_of(done.path)
    exec(preparation, scope)
    if "AutoImageProcessor" in use:
        assert crop == "squash"
        channels_first = pixels.transpose(2, 0, 1).astype(np.float32)
        scope["pictures"] = [channels_first if "channels_first" in use else cells]
    else:
        scope["images"] = scope["prepare"](torch.from_numpy(pixels.transpose(2, 0, 1).copy()))[None]
    with torch.no_grad():
        exec(use, scope)
    assert (scope["logits"] - expected).abs().max() < (1e-4 if "channels_first" in use else 2e-6)


def test_configs_say_nothing_that_the_model_does_not(exported: Any) -> None:
    done = exported("huggingface", 16, SQUASH, BILINEAR)
    config = json.loads((done.path / "config.json").read_text())
    processor = json.loads((done.path / "preprocessor_config.json").read_text())
    assert config["drop_path_rate"] == 0
    assert processor["rescale_factor"] == 1 / 65535
    assert "crop_pct" not in processor
    again = load_model(done.path)
    assert again.source.metadata["preprocess"]["bits"] == [16]
    assert again.config.data.background == "drop"  # that of files without an entry
    with open_source(exported("timm", 16).path) as timm:
        assert (timm.metadata["preprocess"]["bits"], timm.metadata["preprocess"]["background"]) == ([16], "drop")
    assert (again.config.data.crop_mode, again.config.data.augment.interpolation) == ("squash", "bilinear")
    assert np.allclose(again.mean, [0.4, 0.45, 0.5])
    assert any("adds the mask" in note for note in done.notes)
    assert not any("nothing records" in note for note in done.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "share"), [([SQUASH], None), (["data.crop_pct=0.9"], "0.9")])
def test_metadata_of_a_program_is_what_it_was_made_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], share: str | None
) -> None:
    written: dict[str, str] = {}

    def write(_: Any, path: Path, output: str, metadata: dict[str, str]) -> None:
        path.write_bytes(b"program")
        written.update(metadata)

    model = load_model(source).model
    monkeypatch.setattr(exporting.onnx, "trace", lambda *_: None)
    monkeypatch.setattr(exporting.onnx, "write_onnx", write)
    monkeypatch.setattr(exporting.onnx, "run_onnx", lambda _, batches: [model(batch).detach() for batch in batches])
    done = export(load_model(source, overrides), tmp_path / "out", "onnx")
    assert written.get("crop_pct") == share
    assert written["crop_mode"] == ("squash" if share is None else "center")
    assert json.loads(written["pixels_divided_by"]) == [255]
    assert any("nothing records the depth" in note for note in done.notes)


def read_processor(
    tmp_path: Path, processor: dict[str, Any], size: int = 64, channels: int = 3
) -> tuple[dict[str, Any], list[str]]:
    metadata: dict[str, Any] = {
        "model": {"in_channels": channels},
        "data": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resolution": [size, size]},
        "preprocess": {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic", "bits": [8]},
    }
    notes = sidecar.put_preprocessing(metadata, sidecar.Sidecar(tmp_path, {}, processor))
    return {**metadata["data"], **metadata["preprocess"]}, notes


VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
BIT = {"image_processor_type": "BitImageProcessor", "crop_size": {"height": 64, "width": 64}}


def test_a_processor_is_followed(tmp_path: Path) -> None:
    read, notes = read_processor(tmp_path, VIT)
    assert (read["crop_mode"], read["interpolation"], read["mean"], notes) == ("squash", "bilinear", [0.5] * 3, [])
    for edge, share in ((73, 0.875), (64, 1.0), (71, 64 / 71), (80, 0.8)):
        read, notes = read_processor(tmp_path, {**BIT, "size": {"shortest_edge": edge}})
        assert (read["crop_mode"], int(64 / read["crop_pct"])) == ("center", edge)
        assert abs(read["crop_pct"] - share) < 0.01
        assert "one pixel apart" in notes[0]
    read, _ = read_processor(tmp_path, {**VIT, "size": 64, "image_mean": 0.5, "image_std": [0.25, 0.5, 1]})
    assert (read["crop_mode"], read["mean"], read["std"]) == ("squash", [0.5] * 3, [0.25, 0.5, 1])
    for channels in (1, 5):
        read, _ = read_processor(tmp_path, {**VIT, "image_mean": [0.5], "image_std": [0.25]}, channels=channels)
        assert (read["mean"], read["std"]) == ([0.5] * channels, [0.25] * channels)
    for bits, background in ([8, 16], "drop"), ([16], [0.2, 0.4, 0.6]):
        own = {peers.OWN_INPUT: {"bits": bits, "background": background}}
        read, _ = read_processor(tmp_path, {**VIT, "rescale_factor": 1 / (2 ** bits[0] - 1), **own})
        assert (read["bits"], read["background"]) == (bits, background)
    _, notes = read_processor(tmp_path, {**VIT, "size": {"height": 96, "width": 96}})
    assert "creates images of 96x96 pixels, but its model is for 64x64" in notes[0]


@pytest.mark.parametrize(
    ("change", "mode"),
    [
        ({"do_resize": False}, "no-resize"),
        ({"size": {"shortest_edge": 64}}, "shortest-edge"),
        ({"do_center_crop": True, "crop_size": 48}, "squash-and-crop"),
        ({"do_center_crop": True, "crop_size": 64, "size": {"shortest_edge": 48}}, "pad"),
        ({"do_center_crop": True, "crop_size": {"height": 64, "width": 96}, "size": 96}, "shortest-edge-and-crop"),
    ],
)
def test_a_crop_of_a_processor_that_this_program_does_not_have_is_named(
    tmp_path: Path, change: dict[str, Any], mode: str
) -> None:
    assert read_processor(tmp_path, {**VIT, **change})[0]["crop_mode"] == mode


@pytest.mark.parametrize(
    ("change", "bits"),
    [
        ({}, 8),
        ({"rescale_factor": 1 / 65535}, 16),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 8),
        ({"do_rescale": False, "image_mean": [123.0] * 3, "image_std": [58.0] * 3}, 8),
        ({"do_normalize": False}, 8),
        ({"rescale_factor": 1 / 256}, 8),
    ],
)
def test_whatever_a_processor_multiplies_pixels_by_the_input_is_the_same(
    tmp_path: Path, change: dict[str, Any], bits: int
) -> None:
    from transformers import ViTImageProcessor

    given = {**VIT, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2, **change}
    options = {key: value for key, value in given.items() if key != "image_processor_type"}
    pixels = np.random.default_rng(0).integers(0, 2**bits, (3, 64, 64)).astype(np.float32)
    theirs = ViTImageProcessor(**options)([pixels], input_data_format="channels_first", return_tensors="np")
    read, notes = read_processor(tmp_path, given)
    mean, std = (np.array(read[key])[:, None, None] for key in ("mean", "std"))
    assert read["bits"] == [bits]
    assert np.allclose((pixels / (2**bits - 1) - mean) / std, theirs["pixel_values"][0], rtol=1e-3, atol=1e-3)
    assert bool(notes) is (("rescale_factor" in change and bits == 8) or "do_rescale" in change)


@pytest.mark.parametrize(
    "change",
    [{"size": "large"}, {"image_mean": "red"}, {"rescale_factor": []}, {"do_center_crop": True, "crop_size": [3]},
     {"size": {"shortest_edge": None}, "do_center_crop": True, "crop_size": 64}, {"image_std": None}],
)  # fmt: skip
def test_a_processor_that_is_none_is_one_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(sidecar.CheckpointError, match=r"preprocessor_config\.json is broken"):
        read_processor(tmp_path, {**VIT, **change})
