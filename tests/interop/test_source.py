"""Any file of weights is understood for what it is, or refused in one sentence, and nothing in it is ever run."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swinv2_train.checkpoint.consolidate import write_weights
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.layout import list_checkpoints, read_manifest
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import VARIANTS
from swinv2_train.interop.input_check import recorded_bits
from swinv2_train.interop.load import load_model, source_config
from swinv2_train.interop.metadata import trained_windows, windows_from_buffers
from swinv2_train.interop.names import FORMATS
from swinv2_train.interop.source import open_source
from tests.interop.files import (
    canonical,
    classifier,
    released_file,
    released_simmim_file,
)
from tests.interop.made import write_model
from tests.models.golden import golden_config

RELEASES = [  # file, resolution, window, windows of the pretraining, classes
    ("swinv2_tiny_patch4_window8_256", 256, 8, None, 1000),
    ("swinv2_small_patch4_window8_256", 256, 8, None, 1000),
    ("swinv2_base_patch4_window8_256", 256, 8, None, 1000),
    ("swinv2_tiny_patch4_window16_256", 256, 16, None, 1000),
    ("swinv2_small_patch4_window16_256", 256, 16, None, 1000),
    ("swinv2_base_patch4_window16_256", 256, 16, None, 1000),
    ("swinv2_base_patch4_window12_192_22k", 192, 12, None, 21841),
    ("swinv2_base_patch4_window12to16_192to256_22kto1k_ft", 256, 16, [12, 12, 12, 6], 1000),
    ("swinv2_base_patch4_window12to24_192to384_22kto1k_ft", 384, 24, [12, 12, 12, 6], 1000),
    ("swinv2_large_patch4_window12_192_22k", 192, 12, None, 21841),
    ("swinv2_large_patch4_window12to16_192to256_22kto1k_ft", 256, 16, [12, 12, 12, 6], 1000),
    ("swinv2_large_patch4_window12to24_192to384_22kto1k_ft", 384, 24, [12, 12, 12, 6], 1000),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "resolution", "window", "before", "classes", "buffers"),
    [*((*release, True) for release in RELEASES), *((*release, False) for release in RELEASES[5:9])],
)
def test_every_released_file_tells_its_model(
    tmp_path: Path, name: str, resolution: int, window: int, before: Any, classes: int, buffers: bool
) -> None:
    size = name.partition("_patch4")[0]
    content = released_file(size, resolution, classes, window=window, pretrained_window=before or 0)
    if not buffers:
        content["model"] = {key: value for key, value in content["model"].items() if "relative_" not in key}
    torch.save(content, tmp_path / f"{name}.pth")
    with open_source(tmp_path / f"{name}.pth") as source:
        assert source.format == "official"
        model = source.metadata["model"]
        assert (model["window"], source.num_classes) == (window, classes)
        assert source.metadata["data"]["resolution"] == [resolution, resolution]
        assert {key: model[key] for key in VARIANTS[size]} == VARIANTS[size]
        assert (model["in_channels"], model["patch_size"], model["mlp_ratio"]) == (3, 4, 4.0)
        own = [min(window, resolution // (4 * 2**stage)) for stage in range(4)]
        assert trained_windows(source.metadata) == [(side, side) for side in before or own]
        assert source.metadata["preprocess"]["crop_mode"] == ("squash" if resolution == 384 else "center")
        assert ("its buffers" if buffers else f"the name {name}") in source.notes[-1]
        key = "layers.2.blocks.1.attn.qkv.weight"
        assert torch.equal(source.tensor(key), content["model"][key])
        dropped = {key for key, _ in source.dropped}
        assert source.shapes.keys() | dropped == content["model"].keys()


def test_a_released_simmim_file_needs_its_windows_told(tmp_path: Path) -> None:
    content = released_simmim_file()
    torch.save(content, tmp_path / "swinv2_base_1k_500k.pth")
    with open_source(tmp_path / "swinv2_base_1k_500k.pth") as source:
        assert source.metadata["task"] == {"name": "simmim"}
        assert "window" not in source.metadata["model"]
        assert trained_windows(source.metadata) is None
        key = "layers.0.blocks.0.attn.cpb_mlp.0.weight"
        assert source.renamed[key] == "encoder.layers.0.blocks.0.attn.rpe_mlp.0.weight"
        assert torch.equal(source.tensor(key), content["model"][source.renamed[key]])
        assert {"mask_token", "decoder.0.weight"} < source.shapes.keys()


def test_a_directory_of_timm_tells_windows_statistics_and_names(tmp_path: Path) -> None:
    save_file(FORMATS["timm"].write(canonical(classifier(2)), golden_config()), tmp_path / "model.safetensors")
    config = {
        "architecture": "swinv2_tiny_window8_256", "label_names": ["cat", "dog"],
        "model_args": {"window_size": 4, "pretrained_window_sizes": [3, 3, 3, 2]},
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
                           "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_source(tmp_path) as source:
        assert source.format == "timm"
        assert source.metadata["data"] == {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resolution": [64, 64]}
        assert source.metadata["preprocess"]["crop_pct"] == 0.9
        assert (source.metadata["model"]["window"], source.metadata["model"]["pretrained_window"]) == (4, [3, 3, 3, 2])
        assert source.class_names == ["cat", "dog"]


def test_a_directory_of_hugging_face_tells_the_same(tmp_path: Path) -> None:
    weights = canonical(classifier(2))
    save_file(FORMATS["huggingface"].write(weights, golden_config()), tmp_path / "model.safetensors")
    config = {
        "window_size": 4,
        "image_size": 64,
        "pretrained_window_sizes": [0, 0, 0, 0],
        "id2label": {"0": "a", "1": "b"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with open_source(tmp_path) as source:
        assert source.format == "huggingface"
        assert source.metadata["data"]["mean"] == [0.5] * 3
        assert source.metadata["preprocess"]["crop_mode"] == "squash"
        assert source.class_names == ["a", "b"]
        assert all(torch.equal(source.tensor(name), weights[name]) for name in weights)
        key = "layers.0.blocks.0.attn.qkv.weight"  # three tensors in the file
        assert torch.equal(source.elements(key, 500, 1500), weights[key].flatten()[500:1500])


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_that_are_not_plain_are_one_sentence(tmp_path: Path) -> None:
    weights = canonical(classifier())
    name = "patch_embed.proj.weight"
    patches = weights[name]
    for changed, sentence in (
        ({1: patches}, "names a tensor 1, which is not a string"),
        ({**weights, None: patches}, "names a tensor None, which is not a string"),
        ({**weights, name: patches.to_sparse()}, f"holds {name} as a sparse tensor"),
        ({**weights, name: patches.to(torch.complex64)}, f"holds {name} as a complex tensor"),
        ({**weights, name: patches.to("meta")}, f"holds {name} as a meta (empty) tensor"),
        ({**weights, name: torch.tensor(1.0)}, "patch_embed.proj.weight of 4 dimensions"),
        ({**weights, "layers.0.blocks.0.attn.logit_scale": torch.tensor(1.0)}, "logit_scale has no dimensions"),
        ({**weights, "head.weight": torch.tensor(1.0)}, "head.weight has no dimensions"),
    ):
        torch.save(changed, tmp_path / "x_window4_64.pth")
        with pytest.raises((CheckpointError, ConfigError), match=re.escape(sentence)):
            open_source(tmp_path / "x_window4_64.pth")


@pytest.mark.parametrize(("side", "value"), [(0, 1.0), (7, math.nan), (7, math.inf), (7, 1e-30), (7, 1e30), (7, -1.0)])
def test_damaged_buffers_do_not_tell_windows_of_a_pretraining(side: int, value: float) -> None:
    names = [f"layers.{stage}.blocks.0.attn.relative_coords_table" for stage in range(4)]
    found = windows_from_buffers(dict.fromkeys(names, (1, side, side, 2)), lambda _: [value] * 2 * side**2, [1] * 4, 4)
    if side:
        assert found is not None
        assert (found.window, found.pretrained) == ([(4, 4)] * 4, None)
    else:
        assert found is None


def test_queries_and_keys_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    weights = canonical(classifier())
    for shape in ((), (8, 3)):
        named = FORMATS["huggingface"].write(weights, golden_config())
        key = next(name for name in named if name.endswith("key.weight"))
        save_file({**named, key: torch.zeros(shape)}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"key\.weight \(.*do not fit together"):
            open_source(tmp_path)


def test_records_that_do_not_fit_the_weights_are_ignored(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    metadata = json.loads(header["geometry"])
    metadata |= {"classes": ["one"], "preprocess": {**metadata["preprocess"], "bits": [[8]]}}
    save_file(load_file(path), path, metadata={**header, "geometry": json.dumps(metadata)})
    loaded = load_model(path)
    assert loaded.class_names is None
    assert any("its list of 1 class names is ignored" in note for note in loaded.source.notes)
    assert recorded_bits(loaded) is None


@pytest.mark.slow
def test_a_damaged_record_of_the_metadata_is_one_sentence(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors")
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    recorded = header["__metadata__"]

    def refusal(**changes: str) -> str:
        text = json.dumps({**header, "__metadata__": {**recorded, **changes}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        with pytest.raises((CheckpointError, ConfigError)) as caught, open_source(path) as source:
            source_config(source)
        said = str(caught.value)
        assert str(path) in said
        assert "\n" not in said
        assert len(said) < 600
        return said

    for text in ("null", "[]", "1", "{}", '{"model": []}'):
        assert "metadata is missing" in refusal(geometry=text), text
    for text in ("", "[" * 100_000, '{"model":'):
        assert "is not JSON" in refusal(geometry=text), text
    whole = json.loads(recorded["geometry"])
    for place, values in {
        "model.embed_dim": ["8", 1.5, None, True, 10**400],
        "model.depths": [3, ["x"], [1, 2]],
        "model.window": ["x", {}, [1], -1],
        "model.mlp_ratio": ["x", float("nan"), 10**400],
        "data.resolution": [64, ["64", "64"], [0, 64], [64], [64, 64, 64]],
        "preprocess.mean": [3, ["x"] * 3, [float("nan")] * 3, [10**400] * 3],
        "preprocess.crop_pct": ["x", [], 10**400],
        "preprocess.interpolation": [3, ["bicubic"], "cubic"],
        "preprocess.crop_mode": [{}, 1],
        "task.name": [None, "sort"],
        "task.label_smoothing": ["x", 10**400],
        "classes": ["kind", [1, 2], {}],
        "task": [None, 3],
    }.items():
        section, _, key = place.partition(".")
        for value in values:
            changed = {**whole, section: {**whole[section], key: value} if key else value}
            said = refusal(geometry=json.dumps(changed))
            word = "task" if section == "task" and key in ("", "name") else (key or section).split("_")[0]
            assert word in said, (place, value)
    for changes in ({"metrics": "[1]"}, {"step": "-3"}, {"step": "[]"}):  # of the training, not of the weights
        text = json.dumps({**header, "__metadata__": {**recorded, **changes}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        with open_source(path) as source:
            assert source.metrics == {} or source.step is None


def test_a_model_in_several_files_is_whole_or_refused(tmp_path: Path) -> None:
    tensors = FORMATS["timm"].write(canonical(classifier()), golden_config())
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / file)
    listed = {key: file for file, keys in halves.items() for key in keys}
    index = tmp_path / "model.safetensors.index.json"

    def refused(weight_map: Any) -> str:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError) as caught:
            open_source(tmp_path)
        return str(caught.value)

    index.write_text(json.dumps({"weight_map": listed}))
    with open_source(tmp_path) as source:
        assert torch.equal(source.tensor("norm.weight"), tensors["norm.weight"])
    assert "lacks more.weight, which its index lists" in refused({**listed, "more.weight": "a.safetensors"})
    for broken in (None, [], {}, {"norm.weight": 3}, {"norm.weight": "../a.safetensors"}, {"norm.weight": ["a"]}):
        assert "its weight_map does not list a file" in refused(broken)
    save_file({key: tensors[key] for key in names}, tmp_path / "b.safetensors")
    assert f"both hold {names[0]}" in refused(listed)


def test_a_run_is_its_newest_whole_checkpoint_or_its_best(finished_run: Path, tmp_path: Path) -> None:
    newest, older = list_checkpoints(finished_run / "checkpoints")[:2]
    with open_source(finished_run) as source:
        assert (source.path, source.step, source.format) == (newest, 8, "swinv2-train")
        assert source.metrics == read_manifest(newest).metrics
        assert source.metadata["preprocess"]["mean"] == [0.485, 0.456, 0.406]
        write_weights(newest, tmp_path / "weights.safetensors")
        with open_source(tmp_path / "weights.safetensors") as one:
            assert one.shapes == source.shapes
            assert one.metadata == source.metadata
            assert all(torch.equal(one.tensor(name), source.tensor(name)) for name in one.shapes)
    losses = {path: read_manifest(path).metrics["eval/loss"] for path in (newest, older)}
    with open_source(finished_run, which="best") as source:
        assert source.path == min(losses, key=losses.__getitem__)
    with open_source(finished_run, skip={newest.name: "its hash differs"}) as source:
        assert source.path == older
        assert source.notes == [f"skipped {newest.name}: its hash differs"]
    with pytest.raises(ConfigError, match="no moving average"):
        open_source(finished_run, ema=True)


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_skipped_for_the_next(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    checkpoints = list_checkpoints(run / "checkpoints")
    best, next_best = sorted(checkpoints, key=lambda path: read_manifest(path).metrics["eval/loss"])[:2]
    weights = next((best / "model").iterdir())
    weights.write_bytes(weights.read_bytes()[:-1])
    with open_source(run, which="best") as source:
        assert source.path == next_best
        assert source.notes == [f"skipped {best.name}: model/{weights.name} has {weights.stat().st_size} bytes "
                                f"instead of {weights.stat().st_size + 1}"]  # fmt: skip
    (best / "manifest.json").write_text("{")
    with open_source(run, which="best") as source:
        assert source.path == next_best
        assert source.notes[0].startswith(f"skipped {best.name}: ")
    for other in checkpoints:
        (other / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"no checkpoint in {run} with eval/loss is valid \(skipped step-"):
        open_source(run, which="best")


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_source(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is neither a run directory"):
        open_source(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"there is no checkpoint in .* yet"):
        open_source(tmp_path)
