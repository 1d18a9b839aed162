"""Exports are verified: they load elsewhere with equal outputs, come back with equal bits, or leave nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.image_input import prepare, read_image
from swinv2_train.interop import export as exporting
from swinv2_train.interop import peers
from swinv2_train.interop.export import Exported, check_request, export
from swinv2_train.interop.load import load_model
from swinv2_train.interop.names import SIMMIM_ONLY
from swinv2_train.interop.source import open_source
from tests.interop.made import CLASSES, make_picture, write_model

Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources")
    write_model(place / "plain.safetensors")
    write_model(place / "simmim.safetensors", simmim=True)
    write_model(place / "extra.safetensors", extra_norm_period=2)
    write_model(place / "absolute.safetensors", absolute_position=True)
    return place


@pytest.fixture(scope="module")
def exported(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Directories by format, dtype and source; each is made once."""
    made: dict[tuple[str, ...], Path] = {}
    place = tmp_path_factory.mktemp("exports")

    def get(layout: str, source: str = "plain", dtype: str = "fp32") -> Path:
        key = (layout, source, dtype)
        if key not in made:
            loaded = load_model(sources / f"{source}.safetensors")
            made[key] = export(loaded, place / "-".join(key), layout, dtype=dtype).path
        return made[key]

    return get


def _same_bits(source: Path, directory: Path, *, but: tuple[str, ...] = ()) -> None:
    with open_source(source) as before, open_source(directory) as after:
        kept = {name for name in before.shapes if name not in but}
        assert set(after.shapes) == kept
        for name in kept:
            assert torch.equal(before.tensor(name), after.tensor(name)), name


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["swinv2-train", "timm", "huggingface"])
def test_a_classifier_comes_back_with_equal_bits(
    sources: Path, exported: Callable[..., Path], layout: str, tmp_path: Path
) -> None:
    directory = exported(layout)
    _same_bits(sources / "plain.safetensors", directory)
    before, after = load_model(sources / "plain.safetensors"), load_model(directory)
    assert after.source.format == layout
    assert after.class_names == CLASSES
    assert (after.mean, after.std) == (before.mean, before.std)
    for key in ("resolution", "crop_pct", "crop_mode"):
        assert getattr(after.config.data, key) == getattr(before.config.data, key), key
    image = read_image(make_picture(tmp_path / "picture.png"), 3, DecodeOptions())
    batch = prepare(image, after.config, after.mean, after.std)[None]
    with torch.no_grad():
        assert torch.equal(after.model(batch), before.model(batch))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_peers_compute_the_same_on_pictures(
    sources: Path, exported: Callable[..., Path], layout: str, tmp_path: Path
) -> None:
    loaded = load_model(sources / "plain.safetensors")
    pictures = [read_image(make_picture(tmp_path / f"{seed}.png", seed=seed), 3, DecodeOptions()) for seed in range(3)]
    batch = torch.stack([prepare(image, loaded.config, loaded.mean, loaded.std) for image in pictures])
    run = peers.run_timm if layout == "timm" else peers.run_huggingface
    with torch.no_grad():
        expected = loaded.model(batch)
    assert expected.std(dim=0).max() > 1e-3  # the logits depend on the image
    assert (run(exported(layout), batch) - expected).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_a_simmim_encoder_becomes_a_feature_extractor(
    sources: Path, exported: Callable[..., Path], layout: str
) -> None:
    directory = exported(layout, "simmim")
    _same_bits(sources / "simmim.safetensors", directory, but=SIMMIM_ONLY)
    loaded = load_model(sources / "simmim.safetensors")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = loaded.model.encoder(images)[-1].mean((1, 2))
    run = peers.run_timm if layout == "timm" else peers.run_huggingface
    assert (run(directory, images) - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_a_simmim_model_stays_whole_in_our_own_format(sources: Path, exported: Callable[..., Path]) -> None:
    directory = exported("swinv2-train", "simmim")
    _same_bits(sources / "simmim.safetensors", directory)
    assert load_model(directory).config.task.name == "simmim"


@pytest.mark.slow
def test_half_precision_is_stored_and_compared_after_rounding(sources: Path, tmp_path: Path) -> None:
    done = export(load_model(sources / "plain.safetensors"), tmp_path / "half", "huggingface", dtype="bf16")
    assert done.compared.rounding is not None
    assert done.compared.rounding > 100 * done.compared.difference  # the rounding is not part of the comparison
    whole = sum(file.stat().st_size for file in sources.glob("plain.safetensors"))
    assert done.files["model.safetensors"] < 0.6 * whole
    with open_source(sources / "plain.safetensors") as before, open_source(tmp_path / "half") as after:
        for name in before.shapes:
            assert torch.equal(before.tensor(name).bfloat16().float(), after.tensor(name)), name


def test_weights_beyond_fp16_are_refused(sources: Path, tmp_path: Path) -> None:
    loaded = load_model(sources / "plain.safetensors")
    loaded.model.head.weight.data[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"head\.weight has values beyond the range of fp16"):
        export(loaded, tmp_path / "out", "timm", dtype="fp16")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_windows_of_an_earlier_training_travel(sources: Path, tmp_path: Path) -> None:
    """Window 8 on 128 pixels, with the position bias of weights that were trained with window 4."""
    overrides = ["model.window=8", "data.resolution=128"]
    for layout in ("timm", "huggingface"):
        loaded = load_model(sources / "plain.safetensors", overrides)
        export(loaded, tmp_path / layout, layout)
        config = json.loads((tmp_path / layout / "config.json").read_text())
        assert config.get("model_args", config)["pretrained_window_sizes"] == [4, 4, 4, 2]
        again = load_model(tmp_path / layout).config.model
        assert (again.window, again.pretrained_window) == (8, [4, 4, 4, 2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "source", "overrides", "says"),
    [
        ("timm", "extra", [], "extra_norm_period"),
        ("huggingface", "absolute", [], "absolute_position"),
        ("timm", "plain", ["model.window=5", "data.resolution=96"], "5x5 do not divide the 12x12 map of stage 2"),
        ("timm", "plain", ["data.resolution=66"], "multiple of 4"),
        ("huggingface", "plain", ["data.resolution=72"], "the 9x9 map of stage 2 does not halve evenly"),
        ("huggingface", "plain", ["model.window=[4,4,2,2]"], "one square window.*; --format timm can hold it"),
        ("huggingface", "plain", ["model.window=[5,5,4,3]", "data.resolution=96"], "; --format swinv2-train can"),
        ("huggingface", "plain", ["model.window=2", "model.pretrained_window=[1,2,2,2]"], "one side above 1"),
        ("huggingface", "plain", ["data.resolution=[64,128]", "model.window=2"], "crop only squares"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    sources: Path, tmp_path: Path, layout: str, source: str, overrides: list[str], says: str
) -> None:
    loaded = load_model(sources / f"{source}.safetensors", overrides)
    with pytest.raises(ConfigError, match=says) as caught:
        check_request(loaded, tmp_path / "out", layout, "fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_oblong_windows_per_stage_go_to_timm(sources: Path, tmp_path: Path) -> None:
    loaded = load_model(sources / "plain.safetensors", ["model.window=[[2,4],4,2,2]"])
    assert export(loaded, tmp_path / "out", "timm").compared.difference < 1e-5
    assert load_model(tmp_path / "out").config.model.window == [[2, 4], 4, 2, 2]


@pytest.mark.slow
def test_a_program_is_tried_with_every_batch_size_whatever_the_images(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(sources / "plain.safetensors").model
    tried = []

    def run(_: Path, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        tried.append([len(batch) for batch in batches])
        with torch.no_grad():
            return [model(batch) for batch in batches]

    monkeypatch.setattr(exporting.onnx, "trace", lambda *_: None)
    monkeypatch.setattr(exporting.onnx, "write_program", lambda _, path: path.write_bytes(b"program"))
    monkeypatch.setattr(exporting.onnx, "run_program", run)
    for count in (0, 1, 5):
        pictures = [make_picture(tmp_path / f"{seed}.png", seed=seed).read_bytes() for seed in range(count)]
        loaded = load_model(sources / "plain.safetensors")
        done = export(loaded, tmp_path / "new" / "folder" / str(count), "torch-export", pictures=pictures)
        assert done.compared.input.images == count + 4
    assert tried == [[1, 2, 5], [1, 2, 5], [1, 2, 5, 1]]


@pytest.mark.slow
def test_a_difference_leaves_nothing(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = peers.run_timm
    monkeypatch.setattr(peers, "run_timm", lambda directory, images: honest(directory, images) + 1e-3)
    with pytest.raises(CheckpointError, match=r"differ by 0\.001.*nothing was written"):
        export(load_model(sources / "plain.safetensors"), tmp_path / "out", "timm")
    assert not list(tmp_path.iterdir())


def test_a_peer_that_cannot_load_it_leaves_nothing(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "disagreement", lambda *_: None)
    monkeypatch.setattr(peers, "TIMM_ARCHITECTURE", "no_such_model")
    with pytest.raises(CheckpointError, match=r"timm [\d.]+\S* cannot load what was written"):
        export(load_model(sources / "plain.safetensors"), tmp_path / "out", "timm")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_before_anything_is_written(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="must be written"):
        export(load_model(sources / "plain.safetensors"), tmp_path / "out", "timm")
    assert not list(tmp_path.iterdir())


def test_targets_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(out: Path, layout: str, dtype: str = "fp32") -> str:
        with pytest.raises(ConfigError) as caught:
            exporting.check_target(out, layout, dtype)
        return str(caught.value)

    assert "already exists" in refused(tmp_path, "timm")
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is not a directory" in refused(tmp_path / "file" / "a" / "b", "timm")
    assert "unknown format 'keras'" in refused(tmp_path / "a", "keras")
    assert "written in fp32" in refused(tmp_path / "a", "onnx", "bf16")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'swinv2-train[export]'" in refused(tmp_path / "a", "huggingface")


def test_transformers_prepares_pictures_alike(sources: Path, exported: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    loaded = load_model(sources / "plain.safetensors")
    path = make_picture(tmp_path / "picture.png", size=(96, 64))  # the margin of its crop is even: 56 pixels
    processor: Any = AutoImageProcessor.from_pretrained(exported("huggingface"))
    theirs = processor([Image.open(path)], return_tensors="pt")["pixel_values"][0]
    ours = prepare(read_image(path, 3, DecodeOptions()), loaded.config, loaded.mean, loaded.std)
    levels = (theirs - ours).abs().max() * max(loaded.std) * 255
    assert theirs.shape == ours.shape
    assert levels < 3  # of 255: resizing rounds


@pytest.mark.slow
def test_timm_prepares_pictures_alike(sources: Path, exported: Callable[..., Path], tmp_path: Path) -> None:
    import timm

    loaded = load_model(sources / "plain.safetensors")
    path = make_picture(tmp_path / "picture.png")
    model = timm.create_model(f"local-dir:{exported('timm')}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)(Image.open(path))
    ours = prepare(read_image(path, 3, DecodeOptions()), loaded.config, loaded.mean, loaded.std)
    assert np.abs((theirs - ours).numpy()).max() * max(loaded.std) * 255 < 3
    assert model.pretrained_cfg["label_names"] == CLASSES
