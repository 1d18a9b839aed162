"""Programs: the same outputs for any batch, fixed position tables, and what a reader must know inside the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import CPB_HIDDEN
from swinv2_train.interop import onnx
from swinv2_train.interop.clips import encoded_videos
from swinv2_train.interop.export import export
from swinv2_train.interop.load import load_model
from tests.data.filmed import film
from tests.evaluated import clip_classifier
from tests.interop.made import CLASSES, write_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extra norms, an absolute position embedding, maps that need padding, and the memory-saving attention."""
    path = tmp_path_factory.mktemp("onnx") / "model.safetensors"
    model: dict[str, Any] = {"depths": [1, 2, 1, 1], "extra_norm_period": 2, "absolute_position": True, "window": 3}
    return write_model(path, attention="sequential", drop_path=0.3, **model)


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both programs of the model, which is traced once for both: that takes most of the time."""
    traced = []
    trace = onnx.trace

    def once(*arguments: Any) -> torch.export.ExportedProgram:
        traced.append(trace(*arguments) if not traced else traced[0])
        return traced[0]

    place = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "trace", once)
        for layout, name in (("onnx", "model.onnx"), ("torch-export", "model.pt2")):
            done = export(load_model(source), place / layout, layout)
            assert set(done.files) == {"README.md", name}
            assert done.compared.difference < 1e-5
    return place


BATCHES = [torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count)) for count in (1, 3, 4)]


def test_onnx_takes_any_number_of_images(source: Path, exported: Path) -> None:
    model = load_model(source).model
    for images, computed in zip(BATCHES, onnx.run_onnx(exported / "onnx" / "model.onnx", BATCHES), strict=True):
        with torch.no_grad():
            expected = model(images)
        assert computed.shape == expected.shape
        assert (computed - expected).abs().max() < 1e-5


def test_onnx_says_how_to_prepare_images(exported: Path) -> None:
    import onnx as onnx_format

    model = onnx_format.load(exported / "onnx" / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["mean"]) == [0.4, 0.45, 0.5]
    assert json.loads(facts["resolution"]) == [64, 64]
    assert json.loads(facts["classes"]) == CLASSES
    assert (facts["crop_mode"], facts["crop_pct"]) == ("center", "0.8")
    (given,), (result,) = model.graph.input, model.graph.output
    assert (given.name, result.name) == ("images", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_bias_network_is_not_in_the_onnx_file(exported: Path) -> None:
    """Its hidden width is that of no other weight of this model."""
    import onnx as onnx_format

    tensors = onnx_format.load(exported / "onnx" / "model.onnx").graph.initializer
    assert any(list(tensor.dims) == [8, 3, 4, 4] for tensor in tensors)  # the patch embedding, under whatever name
    assert not [tensor.name for tensor in tensors if CPB_HIDDEN in tensor.dims]


def test_a_torch_program_holds_plain_operations_and_its_weights_alone(exported: Path) -> None:
    with zipfile.ZipFile(exported / "torch-export" / "model.pt2") as archive:
        listed = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".json"))
    for present in (b"patch_embed.proj.weight", b"fixed_table", b"torch.ops.aten.linear"):
        assert present in listed
    for absent in (b"cpb_mlp", b"torch.ops.higher_order", b"swinv2_train::"):
        assert absent not in listed


@pytest.mark.parametrize(
    "variant",
    [
        {"simmim": True},
        {"similarity": "dot", "position_bias": "table", "norm_placement": "pre"},
        {"position_bias": "linear-cpb", "norm_placement": "sandwich", "window": 5},
    ],
)
def test_fixed_tables_change_nothing(tmp_path: Path, variant: dict[str, Any]) -> None:
    loaded = load_model(write_model(tmp_path / "variant.safetensors", attention="reference", **variant))
    inference = onnx.Inference(loaded.model, loaded.config.task.OUTPUT).eval()
    assert inference.output == ("features" if "simmim" in variant else "logits")
    with torch.no_grad():
        expected = onnx.Inference(load_model(tmp_path / "variant.safetensors").model, loaded.config.task.OUTPUT).eval()(
            BATCHES[1]
        )
        onnx.fix_tables(inference.model, loaded.config.model, (64, 64))
        assert (inference(BATCHES[1]) - expected).abs().max() < 1e-5
    names = set(inference.state_dict())
    assert len([name for name in names if name.endswith("fixed_table")]) == sum(loaded.config.model.depths)
    for absent in ("cpb_mlp", "relative_position_bias_table", "decoder", "mask_token"):
        assert not [name for name in names if absent in name]


def test_programs_of_clips(tmp_path: Path) -> None:
    """With windows that are shifted and padded along time."""
    path = clip_classifier(tmp_path / "clips.safetensors", ["left", "right", "down"])
    done = export(
        load_model(path), tmp_path / "onnx", "onnx", pictures=encoded_videos([_film(tmp_path)], load_model(path))
    )
    assert done.compared.difference < 1e-5
    assert done.compared.input.images == 3  # the video, and two synthetic clips
    clips = [torch.randn(count, 3, 8, 32, 32, generator=torch.Generator().manual_seed(count)) for count in (1, 3)]
    model = load_model(path).model
    for batch, computed in zip(clips, onnx.run_onnx(tmp_path / "onnx" / "model.onnx", clips), strict=True):
        with torch.no_grad():
            assert (computed - model(batch)).abs().max() < 1e-5
    import onnx as onnx_format

    written = onnx_format.load(tmp_path / "onnx" / "model.onnx")
    facts = {entry.key: entry.value for entry in written.metadata_props}
    assert (facts["frames"], facts["frame_stride"]) == ("8", "2")
    dims = written.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[1:]] == [3, 8, 32, 32]
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "pipeline_tag: video-classification" in card
    assert "`images`: (batch, 3, 8, 32, 32) float32" in card
    with pytest.raises(ConfigError, match="videos are decoded to 8 bits"):
        export(load_model(path), tmp_path / "other", "torch-export", bits=16)
    with pytest.raises(ConfigError, match=r"model\.temporal_patch=2: the layout of timm does not support it"):
        export(load_model(path), tmp_path / "other", "timm")


def _film(folder: Path) -> Path:
    path = folder / "a.mp4"
    path.write_bytes(film(30, size=(40, 56)))
    return path
