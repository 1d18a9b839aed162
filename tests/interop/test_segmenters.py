"""Segmenters start from any weights, keep the rows of their classes, and leave the package with equal outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import swinv2_train
from swinv2_train.analysis.features import features_of
from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.engine.fill_in import read_map
from swinv2_train.interop import onnx, peers
from swinv2_train.interop.export import export, exported_part
from swinv2_train.interop.load import load_model
from swinv2_train.interop.source import open_source
from swinv2_train.interop.transfer import Transfer, plan_transfer
from swinv2_train.models import Segmenter
from tests.interop.files import SMALL as OFFICIAL
from tests.interop.files import official_file
from tests.interop.made import CLASSES, SMALL, write_model


def section(**fields: Any) -> SegmentationConfig:
    return SegmentationConfig(**{"channels": 8, "auxiliary_channels": 8, **fields})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources")
    write_model(place / "classes.safetensors")
    write_model(place / "simmim.safetensors", simmim=True)
    write_model(place / "upernet.safetensors", segmentation=section(), attention="sequential", in_channels=4)
    write_model(place / "fpn.safetensors", segmentation=section(decoder="fpn"))
    torch.save(official_file(64, window=4), place / "official.pth")
    return place


def into(
    path: Path, names: list[str] | None = None, count: int = 6, label_map: list[int] | None = None, **fields: Any
) -> Transfer:
    """The plan of a segmenter that starts from a file."""
    model = {**SMALL, "depths": [2, 2, 2, 2], **OFFICIAL} if path.suffix == ".pth" else SMALL
    config, task = ModelConfig(**model), section(num_classes=count, **fields)
    with torch.device("meta"):
        built = Segmenter(config, task, count, (64, 64))
    shapes = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    return plan_transfer(
        open_source(path), shapes, config, label_map, resolution=(64, 64), class_names=names, task=task
    )


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("classes.safetensors", {"head.weight": "of task=classification only"}),
        ("simmim.safetensors", {"mask_token": "of SimMIM pretraining only"}),
        ("official.pth", {"head.bias": "of task=classification only"}),
    ],
)
def test_a_segmenter_takes_the_backbone_of_other_models(sources: Path, name: str, dropped: dict[str, str]) -> None:
    transfer = into(sources / name)
    new = {row.key for row in transfer.of("new")}
    assert {key.partition(".")[0] for key in new} == {"norms", "decoder", "auxiliary"}
    assert transfer.tensor("decoder.classifier.weight") is None, "the model keeps its initial value"
    found = {row.key: row.detail for row in transfer.of("dropped")}
    assert dropped.items() <= found.items()
    name = "layers.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(transfer.tensor(f"backbone.{name}"), transfer.source.tensor(name))


@pytest.mark.parametrize(
    ("names", "rows"),
    [(CLASSES, [0, 1, 2, 3, 4, 5]), (["kind 5", "sky", "kind 0"], [5, None, 0]), (None, [0, 1, 2, 3, 4, 5])],
)
def test_rows_of_both_classifiers_go_by_class_name(sources: Path, names: list[str], rows: list[int | None]) -> None:
    transfer = into(sources / "fpn.safetensors", names, len(rows), decoder="fpn")
    for part in ("decoder.classifier.weight", "decoder.classifier.bias", "auxiliary.classifier.weight"):
        there, here = transfer.source.tensor(part), transfer.tensor(part)
        for number, row in enumerate(rows):
            assert torch.equal(here[number], torch.zeros_like(there[0]) if row is None else there[row]), part
    assert torch.equal(transfer.tensor("norms.1.weight"), transfer.source.tensor("norms.1.weight"))


def test_another_number_of_classes_without_names_and_another_decoder_start_new(sources: Path) -> None:
    transfer = into(sources / "fpn.safetensors", None, 4, decoder="fpn")
    assert not transfer.tensor("decoder.classifier.weight").any()
    transfer = into(sources / "fpn.safetensors", CLASSES, decoder="linear")
    assert transfer.tensor("decoder.classifier.weight") is transfer.tensor("decoder.classifier.bias") is None
    assert transfer.tensor("auxiliary.classifier.weight") is not None
    assert transfer.lines()[0].endswith("2 new (decoder), 21 dropped (decoder)")
    assert any("in the source does not fit" in row.detail for row in transfer.of("new"))
    assert "head row" not in transfer.table()
    with pytest.raises(ConfigError, match=r"init\.label_map=.*no row fits") as caught:
        into(sources / "fpn.safetensors", CLASSES, label_map=[0] * 6, decoder="linear")
    assert "\n" not in str(caught.value)


def test_a_label_map_for_a_head_that_cannot_be_used_is_refused(sources: Path) -> None:
    keys = ["task=segmentation", "task.num_classes=6", "init_from=x", "init.label_map=numbers"]
    refused = pytest.raises(ConfigError, match=r"init\.label_map=numbers: .* is of task=classification, whose head")
    with open_source(sources / "classes.safetensors") as source, refused:
        read_map(compose(keys), source, None)
    with open_source(sources / "fpn.safetensors") as source:
        assert read_map(compose(keys), source, None) == [0, 1, 2, 3, 4, 5]


def test_a_segmenter_is_loaded_whole(sources: Path) -> None:
    loaded = load_model(sources / "upernet.safetensors")
    assert loaded.config.task.num_classes == 6
    assert loaded.class_names == CLASSES
    with open_source(sources / "upernet.safetensors") as source:
        for name, parameter in loaded.model.named_parameters():
            assert torch.equal(parameter, source.tensor(name.removeprefix("backbone."))), name
    images = torch.randn(2, 4, 45, 70)
    found = features_of(loaded.model, images, (1, 4))
    with torch.no_grad():
        maps = loaded.model.backbone(images)
        scores = loaded.model.scores(images)
    assert torch.equal(found["features"], maps[-1].mean((1, 2)))
    assert torch.equal(found["stage1"], maps[0].permute(0, 3, 1, 2))
    model = swinv2_train.load(sources / "upernet.safetensors", device="cpu")
    chances = model.probabilities(images)
    assert chances.shape == (2, 6, 45, 70)
    torch.testing.assert_close(chances, scores.softmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["swinv2-train", "timm"])
def test_whole_or_as_a_feature_extractor(sources: Path, tmp_path: Path, layout: str) -> None:
    done = export(load_model(sources / "fpn.safetensors"), tmp_path / "out", layout)
    card = (tmp_path / "out" / "README.md").read_text()
    loaded, images = load_model(sources / "fpn.safetensors"), torch.randn(2, 3, 64, 64)
    if layout == "timm":
        assert any("has no plain classification head: exported as a feature extractor" in note for note in done.notes)
        assert "without the decoder" in card
        expected = features_of(loaded.model, images)["features"]
        assert (peers.run_timm(tmp_path / "out", images) - expected).abs().max() < 1e-5
        assert f"| parameters | {sum(each.numel() for each in loaded.model.backbone.parameters()):,} |" in card
        return
    again = load_model(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again.model.scores(images), loaded.model.scores(images))
    assert "pipeline_tag: image-segmentation" in card
    assert "logits = model.scores(images)" in card
    assert f"| parameters | {sum(each.numel() for each in loaded.model.parameters()):,} |" in card


@pytest.mark.slow
def test_programs_score_every_pixel(sources: Path) -> None:
    """At a size that 32 does not divide and not square. Only traced: writing either format takes far longer."""
    path, overrides = sources / "upernet.safetensors", ["data.resolution=[44,64]"]
    expected, loaded = load_model(path, overrides).model, load_model(path, overrides)
    inference = exported_part(loaded, "onnx")
    assert (inference.names, inference.output) == (("logits",), "pixel_logits")
    program = onnx.trace(inference, loaded.config.model, torch.randn(2, 4, 44, 64))
    for count in (1, 3):
        images = torch.randn(count, 4, 44, 64)
        with torch.no_grad():
            computed, scores = program.module()(images), expected.scores(images)
        assert computed.shape == (count, 6, 44, 64)
        torch.testing.assert_close(computed, scores, rtol=0, atol=1e-5 * float(scores.abs().max()))
    kept = {name for name, _ in expected.named_parameters() if not name.startswith("auxiliary.")}
    assert {name for name in kept if "cpb_mlp" not in name} <= {
        name.removeprefix("model.") for name in program.state_dict
    }
    assert not [name for name in program.state_dict if "auxiliary" in name]
