"""`optim.freeze` and `optim.lr_scales` against the names of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.models.heads import ImageClassifier, MaskedImageModel
from swinv2_train.models.trainable import apply_freeze, count_trained, rate_factors

TINY = {"embed_dim": 16, "num_heads": [1, 2, 4, 8], "depths": [1, 2, 1, 1], "window": 4}


def masked(**more: Any) -> MaskedImageModel:
    with torch.device("meta"):
        return MaskedImageModel(ModelConfig(**{**TINY, **more}), (64, 64))


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_stages_are_the_patch_and_position_embedding_and_the_first_stages() -> None:
    model = masked(absolute_position=True)
    apply_freeze(model, {"stages": 2})
    starts = ("encoder.patch_embed.", "encoder.absolute_pos_embed", "encoder.layers.0.", "encoder.layers.1.")
    assert frozen(model) == {name for name, _ in model.named_parameters() if name.startswith(starts)}
    assert "encoder.layers.1.downsample.norm.weight" in frozen(model)
    trained, total = count_trained(model)
    assert 0 < trained < total


@pytest.mark.parametrize("name", ["backbone.layers.0", "encoder.layers.0"])
def test_the_backbone_of_any_task_can_be_called_that(name: str) -> None:
    model = masked()
    apply_freeze(model, [name])
    assert frozen(model) == {one for one, _ in model.named_parameters() if one.startswith("encoder.layers.0.")}


def test_names_end_at_a_dot() -> None:
    assert set(rate_factors(masked(), {"encoder.layers.1.blocks.0.norm1": 2.0})) == {
        "encoder.layers.1.blocks.0.norm1.weight", "encoder.layers.1.blocks.0.norm1.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["backbone.layer.0"], r"optim\.freeze=backbone\.layer\.0: .*closest names are backbone\.layers\.0"),
        (["encoder.layers.0", "backbone.layers.0"], "set twice"),
        (["encoder", "decoder", "mask_token"], "at least one parameter must be trained"),
    ],
)
def test_wrong_names_are_refused(freeze: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_freeze(masked(), freeze)
    with pytest.raises(ConfigError, match=r"optim\.lr_scales=head: .*closest names are"):
        rate_factors(masked(), {"head": 2.0})


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_frozen_stages_keep_no_activations(checkpointing: int) -> None:
    """Autograd saves nothing where nothing before it trains, with and without recomputation."""
    torch.manual_seed(0)
    model = ImageClassifier(ModelConfig(**TINY, drop_path=0.2, checkpointing=checkpointing), 3, (64, 64))
    apply_freeze(model, {"stages": 2})
    kept, counts = [], {}

    def count(name: str) -> Any:
        return lambda *_: counts.__setitem__(name, len(kept))

    for name in ("patch_embed", "layers.0", "layers.1", "layers.3"):
        model.backbone.get_submodule(name).register_forward_hook(count(name))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(1) or tensor, lambda tensor: tensor):
        model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert counts["patch_embed"] == counts["layers.0"] == counts["layers.1"] == 0 < counts["layers.3"]
    assert {name for name, one in model.named_parameters() if one.grad is None} == frozen(model)
