"""Weights fit a model by what it is, not by how its config says it."""

from __future__ import annotations

from typing import Any

import pytest

from swinv2_train.config.model import ModelConfig, extra_norm_text, extra_norms
from swinv2_train.config.structure import structural_difference


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ({}, {"extra_norm_period": 7}, None),  # no stage has seven blocks
        ({"extra_norm_stage": True}, {"extra_norm_stage": True, "extra_norm_period": 6}, None),
        ({"extra_norm_stage": True, "extra_norm_period": 2}, {"extra_norm_period": 2}, None),
        ({"extra_norm_stage": True}, {}, "extra_norm_stage"),
        ({"extra_norm_period": 6}, {}, "extra_norm_period"),
        ({"extra_norm_period": 6}, {"extra_norm_stage": True}, "extra_norm_period"),
        ({"mlp_ratio": 8 / 3}, {"mlp_ratio": 2.66666667}, None),
        ({"depths": [2, 2, 18, 2]}, {}, "depths"),
        ({}, {"temporal_patch": 4}, None),  # weights of images are inflated
        ({"temporal_patch": 2}, {"temporal_patch": 2, "temporal_window": 16}, None),
        ({"temporal_patch": 2}, {"temporal_patch": 4}, "temporal_patch"),
        ({"temporal_patch": 2}, {}, "temporal_patch"),
    ],
)
def test_models_are_compared_by_their_structure(
    one: dict[str, Any], other: dict[str, Any], difference: str | None
) -> None:
    assert structural_difference(ModelConfig(**one), ModelConfig(**other)) == difference


def test_the_places_of_extra_norms_are_told() -> None:
    both = ModelConfig(depths=[1, 2, 6, 2], extra_norm_period=3, extra_norm_stage=True)
    assert extra_norms(both) == [[True], [False, True], [False, False, True] * 2, [False, True]]
    assert extra_norm_text(both) == "every 3 blocks and at the end of every stage"
    assert extra_norm_text(ModelConfig(extra_norm_stage=True)) == "at the end of every stage"
    assert extra_norm_text(ModelConfig()) == ""
