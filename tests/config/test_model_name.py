"""A name of the paper belongs to one size: another model gets a name of its own, or the name is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose, from_yaml, override, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import VARIANTS, variant
from swinv2_train.config.model_name import name_of_shape, true_name


def test_every_size_is_told_from_its_shape() -> None:
    for name in VARIANTS:
        assert name_of_shape(replace(variant(name, window=5, in_channels=7), name="x")) == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"embed_dim": 16, "num_heads": [1, 2, 4, 8], "depths": [1, 2, 1, 1]}, "swinv2_c16_d1-2-1-1"),
        ({"mlp_ratio": 2.0}, "swinv2_c96_d2-2-6-2"),
        ({"extra_norm_period": 6}, "swinv2_c96_d2-2-6-2"),
        ({"depths": [2, 2, 18, 2]}, "swinv2_small"),
        ({"window": 16, "drop_path": 0.3, "similarity": "dot"}, "swinv2_tiny"),
    ],
)
def test_a_name_that_lies_is_replaced(fields: dict[str, object], name: str) -> None:
    assert true_name(variant("swinv2_tiny", **fields)) == name
    assert true_name(replace(variant("swinv2_tiny", **fields), name="my_own")) == "my_own"


def test_composed_read_and_changed_configs_have_the_name_of_their_shape(tmp_path: Path) -> None:
    small = ["model.embed_dim=16", "model.num_heads=[1,2,4,8]"]
    config = compose(small)
    assert config.model.name == "swinv2_c16_d2-2-6-2"
    (tmp_path / "resolved.yaml").write_text(to_yaml(config).replace(config.model.name, "swinv2_tiny"))
    assert from_yaml(tmp_path / "resolved.yaml") == config  # an earlier version wrote the default name
    assert override(to_yaml(config), ["model.depths=[1,1,1,1]", "model.name=mine"]).model.name == "mine"
    for change in (lambda items: compose([*small, *items]), lambda items: override(to_yaml(config), items)):
        with pytest.raises(ConfigError) as caught:
            change(["model.name=swinv2_tiny"])
        assert str(caught.value) == (
            "model.name=swinv2_tiny: is another size, because this model has embed_dim=16, num_heads=[1, 2, 4, 8]; "
            "omit it, or choose model=swinv2_tiny"
        )
