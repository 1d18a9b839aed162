"""A model is found below the prefixes of wrappers and trainers, whatever its names are, or refused in one sentence."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.interop.names import FORMATS
from swinv2_train.interop.recognize import recognize
from swinv2_train.interop.source import open_source
from swinv2_train.interop.torch_file import TorchStorage
from tests.interop.files import canonical, classifier, masked_model, mmpretrain_key, official_file
from tests.models.golden import golden_config

PREFIXES = ("", "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module._orig_mod.model.",
            "_forward_module.model.backbone.", "model.encoder.module.", "student.net.")  # fmt: skip
FILE = Path("weights.ckpt")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return canonical(classifier())


@pytest.fixture(scope="module")
def layouts(weights: dict[str, Tensor]) -> dict[str, list[str]]:
    """The keys of one classifier in every layout that is recognized."""
    written = {name: list(FORMATS[name].write(weights, golden_config())) for name in
               ("official", "timm", "huggingface", "torchvision")}  # fmt: skip
    return {**written, "mmpretrain": [mmpretrain_key(name) for name in weights]}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", ["official", "timm", "huggingface", "torchvision", "mmpretrain"])
def test_every_layout_is_recognized_below_every_prefix(
    layouts: dict[str, list[str]], weights: dict[str, Tensor], layout: str, prefix: str
) -> None:
    found = recognize([prefix + key for key in layouts[layout]], FILE)
    assert found.layout == layout
    assert found.outside == []
    assert FORMATS[layout].locate(found.names, found.names).parts.keys() == weights.keys()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_forward_module.model._orig_mod."])
def test_a_simmim_model_is_recognized_below_every_prefix(prefix: str) -> None:
    weights = canonical(masked_model())
    for layout in ("official", "huggingface"):
        found = recognize([prefix + key for key in FORMATS[layout].write(weights, golden_config())], FILE)
        assert found.layout == layout
        assert FORMATS[layout].locate(found.names, found.names).parts.keys() == weights.keys()


def test_blocks_that_are_wrapped_one_by_one_lose_their_wrappers(weights: dict[str, Tensor]) -> None:
    keys = [name.replace(".attn.", "._orig_mod.attn.").replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
            for name in weights]  # fmt: skip
    found = recognize(keys, FILE)
    assert list(found.names.values()) == list(weights)


def test_what_is_outside_of_the_model_is_listed(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """A checkpoint of Lightning: the model, a loss with a parameter, and hyperparameters."""
    state = {f"model.{name}": tensor for name, tensor in weights.items()}
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": OrderedDict(state, **{"loss.temperature": torch.ones(1)}),
        "hyper_parameters": {"model": {"embed_dim": 24}},
        "model": {"name": "swin"},
    }
    torch.save(content, tmp_path / "epoch=3.ckpt")
    with open_source(tmp_path / "epoch=3.ckpt") as source:
        assert source.format == "official"
        assert source.dropped == [("loss.temperature", "outside of model")]
        assert source.renamed["norm.bias"] == "model.norm.bias"
        assert source.shapes.keys() == weights.keys()
        assert torch.equal(source.tensor("head.bias"), weights["head.bias"])


def test_safetensors_with_a_prefix_but_no_record_are_of_another_program(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file({f"backbone.{name}": tensor for name, tensor in weights.items()}, tmp_path / "x.safetensors")
    with open_source(tmp_path / "x.safetensors") as source:
        assert source.format == "official"
        assert source.shapes.keys() == weights.keys()


def test_the_buffers_below_a_prefix_tell_the_windows(tmp_path: Path) -> None:
    content = official_file(64, window=4)["model"]
    torch.save({f"module.{key}": value for key, value in content.items()}, tmp_path / "x.pth")
    with open_source(tmp_path / "x.pth") as source:
        assert source.metadata["model"]["window"] == 4
        assert source.metadata["data"]["resolution"] == [64, 64]


def test_one_of_two_models_is_taken_only_if_its_name_is_usual(weights: dict[str, Tensor]) -> None:
    pair = [f"{place}{name}" for place in ("model.", "ema_model.module.") for name in weights]
    found = recognize(pair, FILE)
    assert len(found.outside) == len(weights)
    assert found.outside[0] == ("ema_model.module.patch_embed.proj.weight", "outside of model")
    for first, second in (("student", "teacher"), ("encoder", "model.encoder")):
        several = [f"{place}.{name}" for place in (first, second) for name in weights]
        with pytest.raises(ConfigError, match=rf"holds several models, whose names begin with {first}. and {second}."):
            recognize(several, FILE)


@pytest.mark.parametrize("keys", [["features.0.0.weight", "features.1.0.conv.weight"], ["conv1.weight"], []])
def test_another_model_is_none(keys: list[str]) -> None:
    assert recognize(keys, FILE).layout is None


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["", "model", "state_dict", "module"])
def test_a_pickled_model_is_one_sentence(tmp_path: Path, place: str, zipped: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    content: Any = {place: model, "epoch": 3} if place else model
    torch.save(content, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        TorchStorage(tmp_path / "whole.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'whole.pt'} holds a pickled Sequential, whose code is never loaded; save its tensors where that "
        "code is: torch.save(model.state_dict(), 'weights.pth')"
    )


def test_a_rank_of_zero_stage_3_is_one_sentence(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": {f"module.{name}": torch.empty(0) for name in weights}}, path)
    with pytest.raises(ConfigError, match=r"tensors without elements; DeepSpeed divides .* zero_to_fp32.py"):
        open_source(path)
