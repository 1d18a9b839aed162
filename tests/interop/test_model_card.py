"""The model card holds what is known of a model and invents nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.config.compose import to_yaml
from swinv2_train.config.data import AugmentConfig, DataConfig
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import ClassificationConfig, SegmentationConfig, SimMIMConfig
from swinv2_train.data.card import Card
from swinv2_train.data.sources import ListedShard, Manifest, manifest_text
from swinv2_train.interop.card_data import dataset_card, role_in_training
from swinv2_train.interop.input_check import InputCheck
from swinv2_train.interop.load import LoadedModel, load_model
from swinv2_train.interop.model_card import Comparison, evaluated_input, model_card
from tests.interop.made import CLASSES, write_model

INPUT = InputCheck([8], 4, "timm's transform", 1.0, 0.01)
COMPARED = Comparison(
    by="timm 1.0",
    images=2,
    difference=1.2e-7,
    largest=3.4,
    rounding=None,
    output="logits",
    parameters=1234,
    input=INPUT,
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_model(tmp_path_factory.mktemp("card") / "lonely.safetensors"))


def _card(loaded: LoadedModel, layout: str = "timm", **changes: Any) -> str:
    given: dict[str, Any] = {"dtype": "fp32", "weights": "raw", "compared": COMPARED, **changes}
    return model_card(loaded, layout, "out", **given)


def _run(directory: Path, name: str, task: Any, **config: Any) -> Path:
    directory.mkdir(parents=True)
    made = Config(task=task, **config)
    made.run.name = name
    made.optim.steps, made.optim.warmup_steps = 5000, 100
    (directory / "resolved.yaml").write_text(to_yaml(made))
    return directory


def test_a_file_alone_tells_of_itself_and_no_training(loaded: LoadedModel) -> None:
    card = _card(loaded)
    for known in (
        "| parameters | 1,234 |",
        "4x4, 4x4, 4x4, 2x2",
        "0.4, 0.45, 0.5",
        ", ".join(CLASSES),
        "| eval/top1 | 0.75 |",
    ):
        assert known in card, known
    assert "differ by at most 1.2e-07" in card
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    assert headings == ["## Model", "## Use", "## Input", "## Classes", "## Results", "## Export", "## License"]
    assert "Not stated" in card


def test_a_run_tells_how_the_weights_were_made(loaded: LoadedModel, tmp_path: Path) -> None:
    first = _run(tmp_path / "first", "pretraining", SimMIMConfig())
    second = _run(tmp_path / "second", "finetuning", ClassificationConfig(), init_from=str(first))
    checkpoint = second / "checkpoints" / "step-00000040"
    source = replace(loaded.source, path=checkpoint)
    card = _card(replace(loaded, source=source))
    assert card.count("# finetuning") == 1
    for known in ("| length | 5,000 steps |", "| label smoothing | 0.1 |", "1. the run pretraining (simmim)"):
        assert known in card, known
    assert "| random crop | area 0.67, 1, aspect 0.75, 1.333 |" in card


@pytest.mark.parametrize(
    ("task", "reference"),
    [
        (SegmentationConfig(num_classes=6), "short side 64 pixels, longer side at most 256"),
        (SegmentationConfig(num_classes=6, resize="native", max_class_share=1.0), "in its own size"),
    ],
)
def test_a_segmenter_tells_its_own_preparation(
    loaded: LoadedModel, tmp_path: Path, task: SegmentationConfig, reference: str
) -> None:
    run = _run(tmp_path / "run", "maps", task, data=DataConfig(resolution=64))
    card = _card(replace(loaded, source=replace(loaded.source, path=run / "checkpoints" / "step-00000040")))
    assert f"| random scale | 0.5 to 2 times the size in evaluation: {reference} |" in card
    limit = ", at most 0.75 of one class" if task.resize == "short" else ""
    assert f"| random crop | 64x64 pixels{limit} |" in card
    assert "aspect 0.75" not in card


def test_an_evaluation_of_entire_images_does_not_depend_on_the_crop(loaded: LoadedModel, tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "maps", SegmentationConfig(num_classes=6))
    source = replace(loaded.source, path=run / "checkpoints" / "step-00000040")
    mine = replace(loaded, source=source, config=replace(loaded.config, task=SegmentationConfig(num_classes=6)))
    own = json.loads(json.dumps(evaluated_input(mine.config, mine.mean, mine.std)))
    found = {
        "checkpoint": str(source.path), "ema": False, "data": "val.tar", "metrics": {"miou": 0.8125},
        "input": own | {"crop_mode": "squash", "crop_pct": 0.875}, "label_map": None, "real_labels": None,
        "max_samples": None,
    }  # fmt: skip
    (run / "evaluations" / "val").mkdir(parents=True)
    (run / "evaluations" / "val" / "results.json").write_text(json.dumps(found))
    assert "| miou | 0.8125 |" in _card(mine)


def test_an_own_transform_is_named_instead_of_a_crop(loaded: LoadedModel, tmp_path: Path) -> None:
    data = DataConfig(augment=AugmentConfig(transform="mine"))
    run = _run(tmp_path / "run", "own", ClassificationConfig(), data=data)
    card = _card(replace(loaded, source=replace(loaded.source, path=run / "checkpoints" / "step-00000040")))
    assert "| transform | mine |" in card
    assert "random crop" not in card


def test_a_chain_that_bites_its_tail_ends(loaded: LoadedModel, tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "round", ClassificationConfig(), init_from=str(tmp_path / "run"))
    card = _card(replace(loaded, source=replace(loaded.source, path=run / "checkpoints" / "step-00000040")))
    assert "1. run\n" in card
    assert "2. " not in card


def test_only_the_evaluation_of_these_very_weights_is_quoted(loaded: LoadedModel, tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "mine", ClassificationConfig())
    checkpoint = run / "checkpoints" / "step-00000040"
    mine = replace(loaded, source=replace(loaded.source, path=checkpoint))
    own = json.loads(json.dumps(evaluated_input(mine.config, mine.mean, mine.std)))
    found = {
        "checkpoint": str(checkpoint),
        "ema": False,
        "data": "shards/val-*.tar",
        "samples": 1234,
        "metrics": {"top1": 0.8125, "unknown": None},
        "input": own,
        "label_map": None,
        "real_labels": None,
        "max_samples": None,
        "precision": "bf16",
    }
    others: list[dict[str, Any]] = [
        {"checkpoint": str(checkpoint.with_name("step-00000020"))},
        {"ema": True},
        {"input": {**own, "resolution": [128, 128]}},
        {"input": {**own, "window": 8}},
        {"input": {**own, "pretrained_window": 0}},
        {"input": {**own, "window_rule": "official"}},
        {"input": {**own, "background": "white"}},
        {"input": {**own, "crop_pct": 1.0}},
        {"input": {**own, "crop_mode": "squash"}},
        {"input": {**own, "mean": [0.5, 0.5, 0.5]}},
        {"input": None},
        {"label_map": "map22kto1k.txt"},
        {"real_labels": "real.json"},
        {"max_samples": 100},
    ]
    # An earlier version recorded no rule of windows and no background.
    earlier = {key: value for key, value in own.items() if key not in ("window_rule", "background")}
    for number, change in enumerate([{"input": earlier}, *others]):
        place = run / "evaluations" / str(number)
        place.mkdir(parents=True)
        metrics = {"metrics": {"top1": 0.0625}} if number else {}
        (place / "results.json").write_text(json.dumps({**found, **metrics, **change}))
    card = _card(mine)
    assert "| top1 | 0.8125 |" in card
    assert "| samples | 1,234 |" in card
    assert "| computed in | bf16 |" in card
    assert "| unknown | not known |" in card
    assert "0.0625" not in card


def test_the_dataset_card_is_read_next_to_local_shards(tmp_path: Path) -> None:
    card = Card(num_samples=1, bytes=1000)
    (tmp_path / "train-000000.tar").write_bytes(b"")
    (tmp_path / "train.dataset.json").write_text(
        manifest_text(Manifest(card.to_json(), {"train-000000.tar": ListedShard(1, 0, "x")}))
    )
    found = dataset_card(f"{tmp_path}/train-*.tar")
    assert found is not None
    assert found.num_samples == 1
    for absent in ("https://example.org/train-000000.tar", str(tmp_path / "gone"), "", None):
        assert dataset_card(absent) is None


def test_the_role_of_evaluated_data_is_named(tmp_path: Path) -> None:
    for name in ("train", "val", "other"):
        (tmp_path / f"{name}-0.tar").touch()
    trained = Config(data=DataConfig(shards=f"{tmp_path}/train-*.tar", eval_shards=f"{tmp_path}/val-*.tar"))
    assert role_in_training(f"{tmp_path}/train-0.tar", trained) == " (training images of the run)"
    assert role_in_training([f"{tmp_path}/val-0.tar"], trained) == " (held-out images of the run)"
    trained.data.frames = 8
    assert role_in_training([f"{tmp_path}/val-0.tar"], trained) == " (held-out videos of the run)"
    for data in (f"{tmp_path}/other-0.tar", f"{tmp_path}/gone.tar", "https://example.org/train-0.tar"):
        assert role_in_training(data, trained) == ""
    assert role_in_training(f"{tmp_path}/train-0.tar", None) == ""


def test_transparency_and_depths_are_shown_where_they_apply(loaded: LoadedModel) -> None:
    assert "| transparency |" in _card(loaded)
    check = replace(INPUT, bits=[32], stored=True)
    several = replace(loaded, config=replace(loaded.config, model=replace(loaded.config.model, in_channels=4)))
    card = _card(several, "onnx", compared=replace(COMPARED, input=check, difference=0.0))
    assert "| transparency |" not in card
    assert "4 encoded images of stored values, as float32" in card
    assert "the logits equal those of the original model" in card


@pytest.mark.parametrize(
    ("layout", "code"),
    [
        ("swinv2-train", 'load_model("out")'),
        ("timm", 'timm.create_model("local-dir:out", pretrained=True)'),
        ("huggingface", 'AutoModelForImageClassification.from_pretrained("out")'),
        ("onnx", 'onnxruntime.InferenceSession("out/model.onnx")'),
        ("torch-export", 'torch.export.load("out/model.pt2")'),
    ],
)
def test_every_format_says_how_to_load_it(loaded: LoadedModel, layout: str, code: str) -> None:
    card = _card(loaded, layout)
    assert code in card
    python = card.split("```python\n")[1].split("```")[0]
    compile(python, "card", "exec")
