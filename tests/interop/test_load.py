"""One call from any weights to a model that computes what they were trained to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swinv2_train.config.errors import ConfigError
from swinv2_train.interop.load import load_model
from swinv2_train.models import MaskedImageModel
from tests.interop.files import canonical, classifier, official_buffers, official_simmim_file
from tests.models.golden import golden_config, golden_images


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official file of a model with window 8 at 128 pixels, pretrained with [6, 6, 6, 3]."""
    path = tmp_path_factory.mktemp("weights") / "official.pth"
    fields = {"window": 8, "pretrained_window": [6, 6, 6, 3]}
    torch.save({"model": {**canonical(classifier(**fields)), **official_buffers(golden_config(**fields), 128)}}, path)
    return path


def test_the_model_computes_the_same(weights: Path) -> None:
    loaded = load_model(weights)
    assert not loaded.model.training
    assert (loaded.config.data.resolution, loaded.config.model.window, loaded.config.task.num_classes) == (128, 8, 5)
    expected = classifier(window=8, pretrained_window=[6, 6, 6, 3])
    images = golden_images(128).float()
    with torch.no_grad():
        assert torch.equal(loaded.model(images), expected(images))
    assert loaded.mean == [0.485, 0.456, 0.406]
    assert {row.action for row in loaded.transfer.rows} == {"loaded", "dropped"}


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


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.windoww=4"], "model.windoww=4: there is no such key; did you mean model.window?"),
        (["model.window"], "cannot read the override 'model.window'"),
        (["task.num_classes=7"], "the head of .* has 5 classes, and no override changes that"),
        (["model.embed_dim=32"], "set model.embed_dim=24"),
        (["data.mean=[0.5]"], "needs one number per channel, model.in_channels=3"),
        (["data.resolution=0"], "is a number of pixels"),
    ],
)
def test_a_wrong_override_is_one_sentence(weights: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_model(weights, overrides)


def test_what_nobody_tells_is_asked_for(tmp_path: Path) -> None:
    torch.save(official_simmim_file(window=12), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"model.window=\?: .* does not tell the attention window .* model.window=16"):
        load_model(tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"data.resolution=\?: .* does not tell the input size"):
        load_model(tmp_path / "weights.pth", ["model.window=12"])
    loaded = load_model(tmp_path / "weights.pth", ["model.window=12", "data.resolution=96"])
    assert isinstance(loaded.model, MaskedImageModel)


def test_a_headless_classifier_cannot_be_used_but_started_from(tmp_path: Path) -> None:
    state = {key: value for key, value in canonical(classifier()).items() if not key.startswith("head.")}
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"has no head.weight that fits .* init_from="):
        load_model(tmp_path / "weights.pth", ["model.window=4", "data.resolution=64"])
