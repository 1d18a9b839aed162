"""Recipes take a real step with their own widths, optimizer, and loss, on small images and with few blocks."""

from __future__ import annotations

import math

import pytest
import torch

from swinv2_train.config.compose import compose
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.build import build_model
from swinv2_train.engine.deepspeed import Engine
from swinv2_train.engine.param_groups import parameter_groups
from swinv2_train.launch.ranks import join, leave
from swinv2_train.models.heads import ImageClassifier

FITTING = ["simmim_demo", "simmim_tiny", "simmim_base", "classify_demo", "in1k_tiny_256", "simmim_finetune_base_224"]
"""simmim_small and simmim_large are tiny and base with more blocks or channels."""
SMALL = (
    "model.depths=[1,1,2,1]", "data.resolution=96", "optim.global_batch=2", "engine.precision=fp32",
    "engine.grad_accum_dtype=null",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTING)
def test_a_recipe_takes_a_step(name: str) -> None:
    config = compose([f"+experiment={name}", *SMALL])
    plan = make_plan(config, 1, 1_000_000)
    ranks = join("cpu", 5)
    try:
        task = config.task.implementation().from_data(config, [0.5] * 3, [0.25] * 3, None)
        engine = Engine(build_model(task, config, ranks.device), config, plan, ranks)
        before = {piece.name: piece.weight.clone() for piece in engine.fragments() if "norm1" in piece.name}
        batch = task.example_batch(2)
        losses = task.loss(engine.model, batch).terms["loss"] / task.weights(batch)["loss"]
        engine.backward(losses)
        assert engine.step(1e-3)
        assert math.isfinite(losses.item())
        assert math.isfinite(engine.grad_norm)
        assert engine.grad_norm > 0
        moved = [
            piece.name
            for piece in engine.fragments()
            if piece.name in before and (piece.weight != before[piece.name]).any()
        ]
        assert len(moved) == len(before) > 0
        engine.close()
    finally:
        leave()


def test_the_layer_decay_of_the_fine_tuning_is_the_official_one() -> None:
    config = compose(["+experiment=simmim_finetune_base_224"])
    with torch.device("meta"):
        model = ImageClassifier(config.model, 1000, (224, 224))
    groups = parameter_groups(model, config.optim, config.model.depths)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert len(set(scales.values())) == 26
    # The layers of the official grouping: 0, 1, 12, 24 and 25.
    for name, scale in {
        "backbone.patch_embed.proj.weight": 7.53e-4,
        "backbone.layers.0.blocks.0.attn.qkv.weight": 1.003e-3,
        "backbone.layers.2.blocks.7.mlp.fc1.weight": 0.02376,
        "backbone.layers.3.blocks.1.norm2.bias": 0.75,
        "backbone.norm.weight": 1.0,
        "head.weight": 1.0,
    }.items():
        assert scales[name] == pytest.approx(scale, rel=1e-3), name
    assert scales["backbone.layers.1.downsample.reduction.weight"] == scales["backbone.layers.1.blocks.1.norm1.weight"]


@pytest.mark.slow
def test_the_layer_decay_of_the_giant_is_per_block() -> None:
    config = compose(["+experiment=supervised_giant"])
    with torch.device("meta"):
        model = ImageClassifier(config.model, 10, (192, 192))
    groups = parameter_groups(model, config.optim, config.model.depths)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales["backbone.patch_embed.proj.weight"] == pytest.approx(0.87**51)
    assert scales["backbone.layers.2.blocks.41.enorm.weight"] == pytest.approx(0.87**5)
