"""Segmenters start from any weights, keep the rows of their classes, and leave the package with equal outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import swinv2_train
from swinv2_train.analysis.features import AnyImages, features_of, with_fixed_crop
from swinv2_train.config.compose import compose
from swinv2_train.config.data import DataConfig
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.data.augment import normalise
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.file_set import FileSet
from swinv2_train.data.geometry import resize
from swinv2_train.data.sample import Sample
from swinv2_train.engine.fill_in import read_map
from swinv2_train.interop import onnx, peers
from swinv2_train.interop.export import export
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
    assert "norms, decoder, auxiliary: initial value; the source has none" in transfer.lines()
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


def test_the_report_names_both_classifiers(sources: Path) -> None:
    lines = into(sources / "fpn.safetensors", ["kind 5", "sky", "kind 0"], 3, decoder="fpn").lines()
    assert lines[0].endswith("147 loaded, 4 rows taken (decoder.classifier, auxiliary.classifier)")
    assert lines[1] == "decoder.classifier, auxiliary.classifier: 2 of 6 rows by class name; 1 new, zeros (sky)"


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


def test_another_decoder_than_that_of_the_weights_is_named(sources: Path) -> None:
    sentence = r"task.decoder=fpn: the weights in .* are of task.decoder=upernet, and have no decoder.*: omit task"
    with pytest.raises(ConfigError, match=sentence):
        load_model(sources / "upernet.safetensors", ["task.decoder=fpn"])


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


@pytest.mark.parametrize(
    ("override", "source", "scaled"),
    [("task.resize=short", (40, 100), (64, 160)), ("task.resize=native", (70, 100), (70, 100)),
     ("task.resize=native", (32, 80), (64, 160)), ("data.crop_mode=squash", (40, 100), (64, 64))],
)  # fmt: skip
def test_inputs_of_one_size_are_the_center_with_its_aspect(
    sources: Path, tmp_path: Path, override: str, source: tuple[int, int], scaled: tuple[int, int]
) -> None:
    """From Python, in swinv2-features, and in the probes of a training and of swinv2-eval."""
    pixels = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    (top, left), image = ((side - 64) // 2 for side in scaled), torch.from_numpy(pixels).permute(2, 0, 1)
    expected = resize(image, scaled, "bicubic")[:, top : top + 64, left : left + 64]
    model = swinv2_train.load(sources / "fpn.safetensors", override, device="cpu")
    assert torch.equal(model.preprocess(pixels)[0], normalise(expected, model.mean, model.std))
    trained = Config(model=model.config.model, data=DataConfig(resolution=64), task=model.config.task)
    trained.data.augment.interpolation = "bicubic"
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample = FileSet([tmp_path / "a.png"]).read(0)
    for config in (model.config, *([with_fixed_crop(trained)] if "task" in override else [])):
        made = AnyImages(config)(Sample(sample, 3, DecodeOptions()), np.random.default_rng(0))
        assert torch.equal(made["image"], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "resize"), [("swinv2-train", "short"), ("timm", "native"), ("huggingface", "short")]
)
def test_whole_or_as_a_feature_extractor(sources: Path, tmp_path: Path, layout: str, resize: str) -> None:
    overrides = [f"task.resize={resize}"]
    done = export(load_model(sources / "fpn.safetensors", overrides), tmp_path / "out", layout)
    card = (tmp_path / "out" / "README.md").read_text()
    loaded, images = load_model(sources / "fpn.safetensors", overrides), torch.randn(3, 3, 64, 64)
    with open_source(tmp_path / "out") as source:
        metadata = source.metadata["preprocess"]
    assert metadata["crop_mode"] == ("native" if resize == "native" else "center")
    assert metadata["crop_pct"] == 1
    if layout == "swinv2-train":
        with torch.no_grad():
            assert torch.equal(load_model(tmp_path / "out").model.scores(images), loaded.model.scores(images))
        assert "pipeline_tag: image-segmentation" in card
        assert "logits = model.scores(images)" in card
        assert f"| parameters | {sum(each.numel() for each in loaded.model.parameters()):,} |" in card
        return
    assert any("has no plain classification head: exported as a feature extractor" in note for note in done.notes)
    assert "without the decoder" in card
    run = peers.run_timm if layout == "timm" else peers.run_huggingface
    for given in (images, images[:1]):
        expected = features_of(loaded.model, given)["features"]
        assert (run(tmp_path / "out", given) - expected).abs().max() < 1e-5
    assert f"| parameters | {sum(each.numel() for each in loaded.model.backbone.parameters()):,} |" in card
    if resize == "native":
        assert "the center of the image in its own size; smaller ones are enlarged" in card
        assert "timm's transform resizes or crops differently" in card


@pytest.mark.slow
def test_programs_score_every_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In files, traced once for both formats, at a size that 32 does not divide and not square."""
    path = write_model(
        tmp_path / "model.safetensors", segmentation=section(), attention="sequential", in_channels=4, depths=[1] * 4
    )
    overrides, traced, trace = ["data.resolution=[44,64]"], [], onnx.trace

    def once(*given: Any) -> torch.export.ExportedProgram:
        traced.append(traced[0] if traced else trace(*given))
        return traced[0]

    monkeypatch.setattr(onnx, "trace", once)
    expected, batches = load_model(path, overrides).model, [torch.randn(count, 4, 44, 64) for count in (1, 3)]
    with torch.no_grad():
        scores = [expected.scores(images) for images in batches]
    for layout, name, run in (("onnx", "model.onnx", onnx.run_onnx), ("torch-export", "model.pt2", onnx.run_program)):
        done = export(load_model(path, overrides), tmp_path / layout, layout)
        assert (done.compared.output, set(done.files)) == ("pixel_logits", {"README.md", name})
        for computed, wanted in zip(run(tmp_path / layout / name, batches), scores, strict=True):
            assert computed.shape == (len(wanted), 6, 44, 64)
            torch.testing.assert_close(computed, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        other = torch.randn(1, 4, 64, 64)  # a program is for one size
        with pytest.raises(Exception, match="44"):
            run(tmp_path / layout / name, [other])
    program = traced[0]
    kept = {name for name, _ in expected.named_parameters() if not name.startswith("auxiliary.")}
    assert {name for name in kept if "cpb_mlp" not in name} <= {
        name.removeprefix("model.") for name in program.state_dict
    }
    assert not [name for name in program.state_dict if "auxiliary" in name]
