"""One call from any weights to a model that computes what they were trained to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks.base import TaskConfig
from swinv2_train.interop.load import load_model, meta_model
from swinv2_train.interop.names import FORMATS
from swinv2_train.models import MaskedImageModel
from swinv2_train.tasks.task import Task
from tests.interop.files import canonical, classifier, official_buffers, official_simmim_file
from tests.models.golden import golden_config, golden_images


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official file of a model with window 8 at 128 pixels, pretrained with [6, 6, 6, 3]."""
    path = tmp_path_factory.mktemp("weights") / "official.pth"
    fields = {"window": 8, "pretrained_window": [6, 6, 6, 3]}
    torch.save({"model": {**canonical(classifier(**fields)), **official_buffers(golden_config(**fields), 128)}}, path)
    return path


@pytest.mark.slow
def test_the_model_computes_the_same(weights: Path) -> None:
    loaded = load_model(weights)
    assert not loaded.model.training
    assert (loaded.config.data.resolution, loaded.config.model.window, loaded.config.task.num_classes) == (128, 8, 5)
    expected = classifier(window=8, pretrained_window=[6, 6, 6, 3])
    images = golden_images(128).float()
    with torch.no_grad():
        assert torch.equal(loaded.model(images), expected(images))
    assert loaded.mean == [0.485, 0.456, 0.406]


def test_modules_of_a_task_are_imported_outside_of_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    config, devices = Config(), []
    implementation = type(config.task).implementation

    def noted(task: TaskConfig) -> type[Task]:
        devices.append(torch.empty(0).device.type)
        return implementation(task)

    monkeypatch.setattr(type(config.task), "implementation", noted)
    model = meta_model(config, (192, 192))
    assert devices == ["cpu"]
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


@pytest.mark.slow
def test_another_window_keeps_the_windows_of_the_training(weights: Path) -> None:
    loaded = load_model(weights, ["model.window=16", "data.resolution=256"])
    assert loaded.config.model.pretrained_window == [6, 6, 6, 3]
    expected = classifier(window=16, pretrained_window=[6, 6, 6, 3])
    images = golden_images(256).float()
    with torch.no_grad():
        assert torch.equal(loaded.model(images), expected(images))


def test_a_run_gives_its_own_model(finished_run: Path) -> None:
    loaded = load_model(finished_run, ["model.attention=reference"])
    assert isinstance(loaded.model, MaskedImageModel)
    assert loaded.config.model.pretrained_window == [4, 4, 4, 2]
    assert loaded.config.data.augment.interpolation == "bilinear"
    assert loaded.source.step == 8
    assert loaded.config.task.mask_patch_size == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.windoww=4"], "model.windoww=4: unknown key; did you mean model.window?"),
        (["model.window"], "cannot read the override 'model.window'"),
        (["task.num_classes=7"], "the head of .* has 5 classes, and no override changes that"),
        (["model.embed_dim=32"], "set model.embed_dim=24"),
        (["data.mean=[0.5]"], "must have one number per channel, model.in_channels=3"),
        (["data.resolution=0"], "must be a number of pixels"),
        (["data.crop_mode=sqash"], "data.crop_mode=sqash: must be one of center, squash"),
        (["data.crop_pct=2"], "data.crop_pct=2.0: is a share from 0.05 to 1"),
        (["data.crop_pct=0"], "data.crop_pct=0.0: is a share from 0.05 to 1"),
        (["data.augment.interpolation=foo"], "data.augment.interpolation=foo: must be one of bilinear, bicubic"),
        (["data.std=[1,0,1]"], "data.std=.*: every standard deviation must be above 0"),
        (["data.mean=[a,b,c]"], "data.mean=.*: needs numbers"),
        (["model.window=0"], "a window side must be an integer of at least 1"),
        (["model.attention=fast"], "model.attention=fast: must be one of"),
    ],
)
def test_a_wrong_override_is_one_sentence(weights: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_model(weights, overrides)


def test_what_nobody_tells_is_asked_for(tmp_path: Path) -> None:
    torch.save(official_simmim_file(window=12), tmp_path / "weights.pth")
    whole = (
        r"model.window=\?: .* does not record the attention window, nor the input size, nor the windows it was trained"
    )
    example = r"model.window=12 data.resolution=192 model.pretrained_window=\[12,12,12,6\]"
    with pytest.raises(ConfigError, match=f"{whole} with .*for example {example}"):
        load_model(tmp_path / "weights.pth")
    given = ["model.window=24", "data.resolution=384"]
    with pytest.raises(ConfigError, match=r"model.pretrained_window=\?: .* does not record the windows it was trained"):
        load_model(tmp_path / "weights.pth", given)
    loaded = load_model(tmp_path / "weights.pth", [*given, "model.pretrained_window=[12,12,12,6]"])
    assert isinstance(loaded.model, MaskedImageModel)
    assert loaded.config.model.pretrained_window == [12, 12, 12, 6]


@pytest.mark.slow
def test_a_0_takes_the_windows_of_the_training(weights: Path) -> None:
    for given, taken in (("0", [6, 6, 6, 3]), ("[0,5,0,0]", [6, 5, 6, 3])):
        loaded = load_model(weights, ["model.window=16", "data.resolution=256", f"model.pretrained_window={given}"])
        assert loaded.config.model.pretrained_window == taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "sentence", "hint"),
    [
        (
            {"crop_mode": "border"},
            "data.crop_mode=border: set by .*; must be one of center, squash",
            "data.crop_mode=center",
        ),
        ({"crop_mode": "squash", "crop_pct": 0.9}, "data.crop_mode=squash-and-crop: set by", "data.crop_mode=squash"),
        (
            {"interpolation": "lanczos"},
            "data.augment.interpolation=lanczos: set by .*; must be one of bilinear, bicubic",
            "data.augment.interpolation=bicubic",
        ),
    ],
)
def test_a_preparation_that_this_program_has_not_is_refused_until_another_is_chosen(
    tmp_path: Path, cfg: dict[str, object], sentence: str, hint: str
) -> None:
    save_file(FORMATS["timm"].write(canonical(classifier(2)), golden_config()), tmp_path / "model.safetensors")
    content = {"model_args": {"window_size": 4}, "pretrained_cfg": {"input_size": [3, 64, 64], **cfg}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=sentence):
        load_model(tmp_path)
    assert load_model(tmp_path, [hint]).config.data.resolution == 64


@pytest.mark.slow
def test_a_headless_classifier_cannot_be_used_but_started_from(tmp_path: Path) -> None:
    state = {key: value for key, value in canonical(classifier()).items() if not key.startswith("head.")}
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"is a backbone without a head .* init_from="):
        load_model(tmp_path / "weights.pth", ["model.window=4", "data.resolution=64", "model.pretrained_window=0"])
